# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""The processor: encodes cells and texts as one batch, and holds the prompt templates."""

import logging
from collections.abc import Sequence
from difflib import get_close_matches
from inspect import signature
from typing import TYPE_CHECKING, Any

from transformers import BatchFeature, ProcessorMixin

from .errors import InputError
from .marker_genes import MarkerReader, NamedGenes
from .prompts import PROMPT_TEMPLATES, as_description, check_templates

if TYPE_CHECKING:  # transformers saves the files that a class's file imports; config.json names this pipeline.
    from .pipeline_langcell import ZeroShotCellAnnotationPipeline  # noqa: F401

logger = logging.getLogger(__name__)

_TEXT_INPUTS = ("input_ids", "attention_mask")


class LangCellProcessor(ProcessorMixin):
    """
    Encodes the inputs of `LangCellModel`, with a `LangCellFeatureExtractor` for cells and a BERT tokenizer for texts.

    Args:
        feature_extractor: A `LangCellFeatureExtractor`.
        tokenizer: The text tower's tokenizer.
        prompt_templates: Templates for the texts that describe a cell type, one or several (an ensemble), with the
            fields `{name}`, `{definition}` and `{synonym}`; by default `PROMPT_TEMPLATES`, name and definition. Saved
            with the processor.
        wordings: Older name of `prompt_templates`, which older checkpoints have.

    Raises:
        InputError: Templates that are not strings, or have unknown fields or no field.

    Example:

    ```python
    >>> processor(cells=adata[:2], text=["B cell", "T cell"], return_tensors="pt")  # doctest: +SKIP

    ```"""

    _auto_class = "AutoProcessor"

    def __init__(
        self,
        feature_extractor,
        tokenizer,
        prompt_templates: Sequence[str] | None = None,
        wordings: Sequence[str] | None = None,
        **kwargs: Any,
    ):
        super().__init__(feature_extractor, tokenizer, **kwargs)
        # The text tower has no token types. What a tokenizer was made with is what it saves.
        tokenizer.model_input_names = tokenizer.init_kwargs["model_input_names"] = list(_TEXT_INPUTS)
        if wordings is not None:
            logger.info("The processor calls its prompt templates 'wordings', as older checkpoints do.")
        given = wordings if prompt_templates is None else prompt_templates
        self.prompt_templates = PROMPT_TEMPLATES if given is None else given

    @property
    def prompt_templates(self) -> tuple[str, ...]:
        """Templates for the texts that describe a cell type; they are checked when they are set."""
        return self.__dict__["prompt_templates"]

    @prompt_templates.setter
    def prompt_templates(self, prompt_templates: Sequence[str]) -> None:
        # `save_pretrained` saves what is in __dict__.
        self.__dict__["prompt_templates"] = check_templates(prompt_templates)

    def to_dict(self, **kwargs: Any) -> dict[str, Any]:
        """Returns what is saved, which always names this class for `AutoProcessor`."""
        return super().to_dict(**kwargs) | {
            "auto_map": {self._auto_class: f"processing_langcell.{type(self).__name__}"}
        }

    def __repr__(self) -> str:
        # The inherited one prints the gene vocabulary.
        return f"{type(self).__name__}({self.feature_extractor!r}, {type(self.tokenizer).__name__})"

    def find_genes(self, description: Any) -> NamedGenes:
        """
        Finds the genes that a description names, as marker evidence reads them.

        Args:
            description: A text, several texts, or `{"description": ..., "markers": [...], "absent": [...]}`.

        Returns:
            Ids of the genes that mark the cells, of those that the cells do not express, and names in lists that the
            vocabulary does not know.

        Raises:
            InputError: Something else than a description.
        """
        return MarkerReader(self.feature_extractor.genes).read(as_description("the text", description))

    def __call__(
        self,
        cells: Any = None,
        text: str | Sequence[str] | None = None,
        *,
        return_tensors: str | None = None,
        cell_kwargs: dict[str, Any] | None = None,
        text_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """
        Encodes cells, texts, or both.

        Args:
            cells: An AnnData, in memory or backed, or a `(cells, genes)` matrix with `gene_ids`.
            text: A text or several.
            return_tensors: `"pt"` or `"np"`; lists if left out.
            cell_kwargs: Arguments of the feature extractor alone.
            text_kwargs: Arguments of the tokenizer alone; by default it pads to the longest text, and truncates texts
                to the text tower's longest input.
            kwargs: Arguments of the feature extractor (`layer`, `use_raw`, `counts`, `gene_ids`, ...) and of the
                tokenizer (`truncation`, ...). Those that both have (`padding`, `max_length`) are for the cells, or for
                the texts if there are no cells.

        Returns:
            `cell_input_ids`, `cell_attention_mask` `(cells, genes)` when there are cells; `input_ids`,
            `attention_mask` `(texts, tokens)` when there are texts.

        Raises:
            InputError: Neither cells nor text; texts that are not strings; `kwargs` for cells or texts that are not
                there; cells that the feature extractor refuses.
            TypeError: Neither of the two has such an argument; the message names the closest.
        """
        if cells is None and text is None:
            raise InputError("Give cells, text, or both.")
        of_cells, of_texts = self._divide(kwargs, cells is not None)
        for what, missing, options in (("cells", cells is None, of_cells), ("text", text is None, of_texts)):
            if missing and options:
                raise InputError(f"No {what} to use {', '.join(options)} for.")
        batch: dict[str, Any] = {}
        if cells is not None:
            options = {**of_cells, **(cell_kwargs or {})}
            batch |= self.feature_extractor(cells, return_tensors=return_tensors, **options)
        if text is not None:
            options = {"padding": True, "truncation": True, **of_texts, **(text_kwargs or {})}
            texts = [text] if isinstance(text, str) else list(text)
            if not texts or not all(isinstance(one, str) for one in texts):
                raise InputError("text must be a string, or one or more strings.")
            batch |= self.tokenizer(texts, return_tensors=return_tensors, **options)
        return BatchFeature(batch)

    def _divide(self, options: dict[str, Any], has_cells: bool) -> tuple[dict[str, Any], dict[str, Any]]:
        """Divides options among the feature extractor and the tokenizer."""
        of_cells, of_texts = (
            [name for name in signature(part.__call__).parameters if name not in ("cells", "text", "kwargs")]
            for part in (self.feature_extractor, self.tokenizer)
        )
        for name in options:
            if name not in of_cells and name not in of_texts:
                close = get_close_matches(name, of_cells + of_texts, 1)
                hint = f"did you mean {close[0]!r}?" if close else f"cells are read by {', '.join(of_cells)}."
                raise TypeError(f"There is no argument {name!r}: {hint}")
        chosen = {name for name in options if name in of_cells and (has_cells or name not in of_texts)}
        return (
            {name: value for name, value in options.items() if name in chosen},
            {name: value for name, value in options.items() if name not in chosen},
        )

    @property
    def model_input_names(self) -> list[str]:
        return [*self.feature_extractor.model_input_names, *_TEXT_INPUTS]


__all__ = ["LangCellProcessor"]

# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""The processor: encodes cells and texts as one batch, and holds the prompt templates."""

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from transformers import BatchFeature, ProcessorMixin

from .errors import InputError
from .marker_genes import MarkerReader, NamedGenes
from .prompts import PROMPT_TEMPLATES, as_description, check_templates

if TYPE_CHECKING:  # transformers saves the files that a class's file imports; config.json names this pipeline.
    from .pipeline_langcell import ZeroShotCellAnnotationPipeline  # noqa: F401

logger = logging.getLogger(__name__)


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
            cell_kwargs: Further arguments of the feature extractor (`max_length`, for instance).
            text_kwargs: Further arguments of the tokenizer; by default it pads to the longest text, and truncates texts
                to the text tower's longest input.
            kwargs: Arguments of the feature extractor (`layer`, `use_raw`, `counts`, `gene_ids`, ...).

        Returns:
            `cell_input_ids`, `cell_attention_mask` `(cells, genes)` when there are cells; `input_ids`,
            `attention_mask` `(texts, tokens)` when there are texts.

        Raises:
            InputError: Neither cells nor text; texts that are not strings; `kwargs` without cells; cells that the
                feature extractor refuses.
        """
        if cells is None and text is None:
            raise InputError("Give cells, text, or both.")
        if cells is None and kwargs:
            raise InputError(f"No cells to use {', '.join(kwargs)} for; options for texts go in text_kwargs.")
        batch: dict[str, Any] = {}
        if cells is not None:
            options = {**kwargs, **(cell_kwargs or {})}
            batch |= self.feature_extractor(cells, return_tensors=return_tensors, **options)
        if text is not None:
            options = {"padding": True, "truncation": True, "return_token_type_ids": False, **(text_kwargs or {})}
            texts = [text] if isinstance(text, str) else list(text)
            if not texts or not all(isinstance(one, str) for one in texts):
                raise InputError("text must be a string, or one or more strings.")
            batch |= self.tokenizer(texts, return_tensors=return_tensors, **options)
        return BatchFeature(batch)

    @property
    def model_input_names(self) -> list[str]:
        return [*self.feature_extractor.model_input_names, "input_ids", "attention_mask"]


__all__ = ["LangCellProcessor"]

# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Cells and texts to one batch, and how a type of cell is put into texts."""

from collections.abc import Iterable, Sequence
from string import Formatter
from typing import TYPE_CHECKING, Any, NamedTuple

from transformers import BatchFeature, ProcessorMixin

from .errors import InputError

if TYPE_CHECKING:  # What a saved class imports is saved with it: config.json names this pipeline.
    from .pipeline_langcell import ZeroShotCellAnnotationPipeline  # noqa: F401

#: What a wording can have in it, in braces.
FIELDS = ("name", "definition", "synonym")
#: How a type of cell is worded, unless a processor has other wordings.
PROMPT_TEMPLATES = ("cell type: {name}. {definition}",)
#: How it is worded where no wording can be filled: it has no definition, or no synonym.
NAME_ALONE = "cell type: {name}."
#: At most so many of a type's synonyms are worded; 99 of 100 types have no more.
SYNONYMS = 8


class Text(NamedTuple):
    """
    A text that a label is judged by.

    Args:
        text: What the model reads.
        origin: Where it comes from: what fills the wording, as `name and definition` or `synonym 'NK cell'`.
        template: How it is worded; empty for one that was given whole.
    """

    text: str
    origin: str
    template: str = ""


def word(
    prompt_templates: Iterable[str], name: str, definition: str = "", synonyms: Sequence[str] = ()
) -> tuple[Text, ...]:
    """
    The texts of a type of cell: prompts from templates, as CLIP has them (Radford et al., 2021, section 3.1.4).

    A wording with `{synonym}` gives a text for each synonym, the first `SYNONYMS` of them, and one that nothing fills
    gives none. A text that is there already is not repeated. Where no wording gives any, it is `NAME_ALONE`.

    Args:
        prompt_templates: As of `LangCellProcessor`.
        name, definition, synonyms: What fills the fields; the last two may be empty.

    Returns:
        One text or more, in the order of the wordings and the synonyms.

    ```python
    >>> from modeling_langcell.model.processing_langcell import word
    >>> texts = word(["{name}: {definition}", "a {synonym}"], "B cell", synonyms=["B-cell", "B lymphocyte"])
    >>> [text.text for text in texts]
    ['a B-cell', 'a B lymphocyte']

    ```"""
    found: dict[str, Text] = {}
    for template in prompt_templates:
        fields = _fields(template)
        if "definition" in fields and not definition:
            continue
        for synonym in synonyms[:SYNONYMS] if "synonym" in fields else ("",):
            text = template.format(name=name, definition=definition, synonym=synonym).strip()
            parts = [f"{field} {synonym!r}" if field == "synonym" else field for field in dict.fromkeys(fields)]
            found.setdefault(text, Text(text, " and ".join(parts), template))
    return tuple(found.values()) or word((NAME_ALONE,), name)


def as_texts(label: str, texts: str | Sequence[str]) -> tuple[str, ...]:
    """
    A label's description, in one text or in several, as several; one that is there twice is kept once.

    Raises:
        InputError: No text, or an empty one.
    """
    found = (texts,) if isinstance(texts, str) else tuple(texts) if isinstance(texts, Sequence) else ()
    if not found or not all(isinstance(text, str) and text for text in found):
        raise InputError(f"Descriptions must be texts, or lists of texts; that of {label!r} is {texts!r}.")
    return tuple(dict.fromkeys(found))


def _fields(template: str) -> list[str]:
    return [field for _, field, _, _ in Formatter().parse(template) if field is not None]


class LangCellProcessor(ProcessorMixin):
    """
    What `LangCellModel` reads: `LangCellFeatureExtractor` for cells and a BERT tokenizer for texts.

    Args:
        feature_extractor: A `LangCellFeatureExtractor`.
        tokenizer: The text tower's tokenizer.
        prompt_templates: How a type of cell is put into texts: one template or several, an ensemble, with `{name}`,
            `{definition}` and `{synonym}`; by default `PROMPT_TEMPLATES`, name and definition. Saved with the
            processor.
        wordings: The name that `prompt_templates` had before, as older checkpoints have it.

    Raises:
        InputError: Wordings that are none, or have other fields or no field.

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
        given = wordings if prompt_templates is None else prompt_templates
        self.prompt_templates = PROMPT_TEMPLATES if given is None else given

    @property
    def prompt_templates(self) -> tuple[str, ...]:
        """How a type of cell is put into texts; setting them checks them as the class says."""
        return self.__dict__["prompt_templates"]

    @prompt_templates.setter
    def prompt_templates(self, prompt_templates: Sequence[str]) -> None:
        # Where `save_pretrained` looks for it.
        self.__dict__["prompt_templates"] = _checked(prompt_templates)

    def __repr__(self) -> str:
        # The inherited one prints the gene vocabulary.
        return f"{type(self).__name__}({self.feature_extractor!r}, {type(self.tokenizer).__name__})"

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
            return_tensors: `"pt"` or `"np"`; lists when left out.
            cell_kwargs: More arguments for the feature extractor alone (`max_length`, for instance).
            text_kwargs: More arguments for the tokenizer alone; by default it pads to the longest text and cuts at
                the longest that the text tower takes.
            kwargs: Also for the feature extractor (`layer`, `use_raw`, `counts`, `gene_ids`, ...).

        Returns:
            `cell_input_ids`, `cell_attention_mask` `(cells, genes)` when there are cells; `input_ids`,
            `attention_mask` `(texts, tokens)` when there are texts.

        Raises:
            InputError: Neither cells nor text; texts that are no strings; `kwargs` without cells; cells that
                the feature extractor refuses.
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


def _checked(prompt_templates: Sequence[str]) -> tuple[str, ...]:
    """
    Raises:
        InputError: They are not what `LangCellProcessor` says.
    """
    if isinstance(prompt_templates, str) or not isinstance(prompt_templates, Sequence) or not prompt_templates:
        raise InputError(
            f"prompt_templates must be a list of one or more texts such as {PROMPT_TEMPLATES[0]!r}, "
            f"not {prompt_templates!r}."
        )
    for template in prompt_templates:
        try:
            parts = [part[1:] for part in Formatter().parse(template) if part[1] is not None]
        except (TypeError, ValueError):
            parts = []
        if not parts or any(field not in FIELDS or spec or conversion for field, spec, conversion in parts):
            known = ", ".join(f"{{{field}}}" for field in FIELDS)
            raise InputError(f"The wording {template!r} must have one or more of {known} in it, and no other braces.")
    return tuple(prompt_templates)


__all__ = ["LangCellProcessor", "Text", "as_texts", "word"]

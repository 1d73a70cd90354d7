# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""The processor: encodes cells, texts or both as one batch; saving; invalid input; prompt templates."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoProcessor, AutoTokenizer, BatchFeature

from modeling_langcell import InputError, LangCellModel, LangCellProcessor
from modeling_langcell.model.prompts import PROMPT_TEMPLATES, SYNONYMS, as_texts, fill_templates

TEXTS = ["b cell", "natural killer cell", "cell type : monocyte . a cell that is a cell ."]
CELL_INPUTS = ["cell_input_ids", "cell_attention_mask"]
TEXT_INPUTS = ["input_ids", "attention_mask"]


def as_lists(batch: BatchFeature) -> dict:
    return {name: np.asarray(values).tolist() for name, values in batch.items()}


def test_a_batch_joins_cells_and_texts(tiny_processor, cells):
    batch = tiny_processor(cells=cells, text=TEXTS, return_tensors="pt")
    assert list(batch) == tiny_processor.model_input_names == CELL_INPUTS + TEXT_INPUTS
    assert all(values.dtype == torch.int64 for values in batch.values())
    assert as_lists(batch) == {
        **tiny_processor.feature_extractor(cells),
        **tiny_processor.tokenizer(TEXTS, padding=True),
    }
    assert batch["input_ids"].shape[1] == 14  # the longest text, [CLS] and [SEP] with it
    assert batch["attention_mask"].sum(dim=1).tolist() == [4, 5, 14]


def test_either_side_alone(tiny_processor, cells):
    both = tiny_processor(cells=cells, text=TEXTS)
    only_cells, only_texts = tiny_processor(cells=cells), tiny_processor(text=TEXTS)
    assert (list(only_cells), list(only_texts)) == (CELL_INPUTS, TEXT_INPUTS)
    assert {**only_cells, **only_texts} == both
    assert tiny_processor(cells) == only_cells, "cells come first"


@pytest.mark.parametrize("texts", [("b cell", "t cell"), np.array(["b cell", "t cell"]), iter(["b cell", "t cell"])])
def test_texts_in_any_sequence(tiny_processor, texts):
    assert tiny_processor(text=texts) == tiny_processor(text=["b cell", "t cell"])


def test_one_text_is_a_batch_of_one(tiny_processor):
    assert tiny_processor(text="b cell") == tiny_processor(text=["b cell"])
    assert tiny_processor(text="b cell", return_tensors="pt")["input_ids"].shape == (1, 4)


@pytest.mark.parametrize(("kind", "array"), [(None, list), ("np", np.ndarray), ("pt", torch.Tensor)])
def test_return_tensors(tiny_processor, cells, kind, array):
    batch = tiny_processor(cells=cells, text=TEXTS, return_tensors=kind)
    assert isinstance(batch, BatchFeature)
    assert all(type(values) is array for values in batch.values())
    assert as_lists(batch) == as_lists(tiny_processor(cells=cells, text=TEXTS))


def test_options_reach_their_side(tiny_processor, cells):
    cells.layers["counts"], cells.X = cells.X, cells.X * 0.5
    expected = tiny_processor.feature_extractor(cells, layer="counts", max_length=9)
    assert tiny_processor(cells=cells, layer="counts", cell_kwargs={"max_length": 9}) == expected
    assert tiny_processor(cells=cells, layer="gone", cell_kwargs={"layer": "counts", "max_length": 9}) == expected
    batch = tiny_processor(
        cells=cells, text=TEXTS, layer="counts", max_length=9, text_kwargs={"max_length": 6, "padding": "max_length"}
    )
    assert {name: batch[name] for name in CELL_INPUTS} == expected
    assert [len(ids) for ids in batch["input_ids"]] == [6] * 3
    matrix = cells.layers["counts"]
    assert tiny_processor(cells=matrix, gene_ids=list(cells.var["ensembl_id"]), max_length=9) == expected


def test_options_of_texts(tiny_processor, cells):
    """They need no text_kwargs; an option that cells have too is theirs where there are cells."""
    options = {"padding": "max_length", "max_length": 6, "truncation": True}
    expected = tiny_processor.tokenizer(TEXTS, **options)
    assert tiny_processor(text=TEXTS, **options) == tiny_processor(text=TEXTS, text_kwargs=options) == {**expected}
    both = tiny_processor(cells=cells, text=TEXTS, max_length=9, add_special_tokens=False)
    assert {name: both[name] for name in CELL_INPUTS} == tiny_processor(cells=cells, max_length=9)
    assert [ids[:2] for ids in both["input_ids"][:1]] == tiny_processor.tokenizer(["b cell"], add_special_tokens=False)[
        "input_ids"
    ]


def test_options_that_nobody_has(tiny_processor, cells):
    with pytest.raises(TypeError, match="no argument 'truncaton': did you mean 'truncation'"):
        tiny_processor(cells=cells, text=TEXTS, truncaton=True)
    with pytest.raises(TypeError, match="no argument 'layr': did you mean 'layer'"):
        tiny_processor(cells=cells, layr="counts")
    with pytest.raises(InputError, match=r"^No text to use truncation for\.$"):
        tiny_processor(cells=cells, truncation=True)


def test_texts_have_no_token_types(tiny_processor, tmp_path):
    """The text tower takes what its tokenizer gives, also after saving."""
    tiny_processor.save_pretrained(tmp_path)
    for tokenizer in (tiny_processor.tokenizer, AutoTokenizer.from_pretrained(tmp_path)):
        assert list(tokenizer(TEXTS)) == TEXT_INPUTS


def test_long_texts_are_truncated_to_the_text_towers_limit(tiny_processor):
    batch = tiny_processor(text=["a cell " * 100, "b cell"], return_tensors="pt")
    assert batch["input_ids"].shape == (2, 32)
    assert batch["input_ids"][0, -1] == tiny_processor.tokenizer.sep_token_id


def test_the_model_takes_the_batch(tiny_processor, tiny_checkpoint, cells):
    model = LangCellModel.from_pretrained(tiny_checkpoint)
    with torch.inference_mode():
        outputs = model(**tiny_processor(cells=cells, text=TEXTS, return_tensors="pt"), return_matching=True)
    assert outputs.logits_per_cell.shape == (12, 3)
    assert outputs.matching_logits.shape == (12, 3, 2)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "Give cells, text, or both."),
        ({"text": []}, "text must be a string, or one or more strings."),
        ({"text": ["b cell", None]}, "text must be a string, or one or more strings."),
        ({"text": "b cell", "max_length": 8, "layer": "x"}, "No cells to use layer for."),
    ],
)
def test_inputs_that_do_not_fit(tiny_processor, inputs, message):
    with pytest.raises(InputError, match=f"^{message}$"):
        tiny_processor(**inputs)


def test_the_feature_extractors_refusals_pass_through(tiny_processor, cells):
    with pytest.raises(InputError, match="No layer 'gone'"):
        tiny_processor(cells=cells, text=TEXTS, layer="gone")


def test_save_and_load(tiny_processor, cells, tmp_path):
    tiny_processor.save_pretrained(tmp_path)
    for load in (LangCellProcessor, AutoProcessor):
        loaded = load.from_pretrained(tmp_path)
        assert type(loaded) is LangCellProcessor
        assert loaded.feature_extractor.to_dict() == tiny_processor.feature_extractor.to_dict()
        assert loaded.tokenizer.get_vocab() == tiny_processor.tokenizer.get_vocab()
        assert loaded(cells=cells, text=TEXTS) == tiny_processor(cells=cells, text=TEXTS)
        assert loaded.tokenizer.model_max_length == 32
    assert AutoTokenizer.from_pretrained(tmp_path)(TEXTS)["input_ids"] == tiny_processor.tokenizer(TEXTS)["input_ids"]
    written = json.loads((tmp_path / "processor_config.json").read_text())
    assert written["processor_class"] == "LangCellProcessor"
    assert written["auto_map"]["AutoProcessor"] == "processing_langcell.LangCellProcessor"


def test_repr_is_short(tiny_processor):
    """The gene vocabulary, 25,000 genes of it in practice, is not printed."""
    assert "LangCellFeatureExtractor(40 genes, max_length=64)" in repr(tiny_processor)
    assert len(repr(tiny_processor)) < 200


class TestFillTemplates:
    def texts(self, prompt_templates, name="B cell", **said):
        return [text.text for text in fill_templates(prompt_templates, name, **said)]

    def test_every_template_is_filled_in_order(self):
        found = fill_templates(["{name}: {definition}", "{synonym} ({name})"], "B cell", "It is.", ["B-cell", "b"])
        assert [text.text for text in found] == ["B cell: It is.", "B-cell (B cell)", "b (B cell)"]
        assert [text.origin for text in found] == [
            *("name and definition", "synonym 'B-cell' and name", "synonym 'b' and name"),
        ]
        assert [text.template for text in found] == ["{name}: {definition}", *["{synonym} ({name})"] * 2]

    def test_templates_without_values_and_repeated_texts_are_omitted(self):
        prompt_templates = ["{name}", "{name}: {definition}", "{synonym}", "cell: {name}"]
        assert self.texts(prompt_templates) == ["B cell", "cell: B cell"]
        assert self.texts(prompt_templates, synonyms=["B cell", "b"]) == ["B cell", "b", "cell: B cell"]

    def test_there_is_always_a_text(self):
        assert self.texts(PROMPT_TEMPLATES) == self.texts(["{definition}", "{synonym}"]) == ["cell type: B cell."]

    def test_synonyms_are_bounded(self):
        many = [f"b{number}" for number in range(SYNONYMS + 5)]
        assert self.texts(["{synonym}"], synonyms=many) == many[:SYNONYMS]

    def test_braces_in_names_are_kept(self):
        assert self.texts(["{{{name}}}, {definition}"], "{name}", definition="{x}") == ["{{name}}, {x}"]


@pytest.mark.parametrize("texts", [[], "", [""], None, 5, ["a", 5]])
def test_no_texts(texts):
    with pytest.raises(InputError, match="that of 'B cell' is "):
        as_texts("B cell", texts)


class TestPromptTemplates:
    def test_default(self, tiny_processor):
        assert tiny_processor.prompt_templates == PROMPT_TEMPLATES == ("cell type: {name}. {definition}",)

    def test_are_saved_and_loaded(self, tiny_processor, tmp_path):
        prompt_templates = ["{name}: {definition}", "a {synonym}"]
        processor = LangCellProcessor(tiny_processor.feature_extractor, tiny_processor.tokenizer, prompt_templates)
        processor.save_pretrained(tmp_path / "given")
        saved = json.loads((tmp_path / "given" / "processor_config.json").read_text())
        assert saved["prompt_templates"] == prompt_templates
        processor = AutoProcessor.from_pretrained(tmp_path / "given")
        assert processor.prompt_templates == tuple(prompt_templates)
        processor.prompt_templates = ["{name}"]
        processor.save_pretrained(tmp_path / "set")
        assert AutoProcessor.from_pretrained(tmp_path / "set").prompt_templates == ("{name}",)

    def test_processors_saved_without_templates_load(self, tiny_processor, tmp_path):
        tiny_processor.save_pretrained(tmp_path)
        config = json.loads((tmp_path / "processor_config.json").read_text())
        del config["prompt_templates"]
        (tmp_path / "processor_config.json").write_text(json.dumps(config))
        assert AutoProcessor.from_pretrained(tmp_path).prompt_templates == PROMPT_TEMPLATES

    @pytest.mark.parametrize(
        "prompt_templates",
        [[], "{name}", {"{name}"}, ["a cell"], ["{nme}"], ["{name} {}"], ["{name"], ["{name!r}"], ["{name:>9}"], [5]],
    )
    def test_invalid_templates_are_refused(self, tiny_processor, prompt_templates):
        with pytest.raises(InputError, match=r"prompt_templates must be a list|The prompt template .* must have"):
            LangCellProcessor(tiny_processor.feature_extractor, tiny_processor.tokenizer, prompt_templates)
        before = tiny_processor.prompt_templates
        with pytest.raises(InputError):
            tiny_processor.prompt_templates = prompt_templates
        assert tiny_processor.prompt_templates == before

# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Folders that were saved when settings had other names still load."""

import json
import shutil

import numpy as np
import pytest

from modeling_langcell import LangCellAnnotator
from modeling_langcell.annotation.calibration import Calibration
from modeling_langcell.checkpoint.adaptation_record import Adaptation
from modeling_langcell.checkpoint.fingerprint import weights_of_base
from modeling_langcell.checkpoint.loading import load_checkpoint, load_processor

TEMPLATES = ["a {name}", "{synonym}"]
LABELS = {"NK": "natural killer cell", "monocyte": "monocyte"}


@pytest.fixture
def folder(tiny_checkpoint, tmp_path):
    return shutil.copytree(tiny_checkpoint, tmp_path / "older")


def edit(path, change) -> None:
    settings = json.loads(path.read_text())
    change(settings)
    path.write_text(json.dumps(settings))


@pytest.mark.parametrize("multilabel", [False, True])
def test_a_record_that_says_several(tmp_path, multilabel):
    record = {"head": "classes", "labels": {"a": "", "b": ""}, "base": "you/base", "several": multilabel}
    (tmp_path / "adaptation.json").write_text(json.dumps(record))
    adaptation = Adaptation.read(tmp_path)
    assert adaptation.multilabel is multilabel
    adaptation.save(tmp_path)
    assert "several" not in json.loads((tmp_path / "adaptation.json").read_text())
    assert Adaptation.read(tmp_path) == adaptation


def test_an_adapter_that_says_several_annotates(tiny_checkpoint, cells, tmp_path):
    model, _, _ = load_checkpoint(tiny_checkpoint)
    texts = load_processor(tiny_checkpoint)(text=list(LABELS.values()), return_tensors="pt")
    Adaptation(
        head="prototypes",
        labels=LABELS,
        base=str(tiny_checkpoint),
        prototype_weight=0.5,
        prototypes=model.get_text_features(**texts).pooler_output.detach(),
        base_weights=weights_of_base(model, "prototypes"),
    ).save(tmp_path)
    expected = LangCellAnnotator.from_pretrained(adapter=tmp_path).annotate(cells.copy()).obsm["langcell_probabilities"]
    edit(tmp_path / "adaptation.json", lambda record: record.update(several=record.pop("multilabel")))
    found = LangCellAnnotator.from_pretrained(adapter=tmp_path).annotate(cells.copy()).obsm["langcell_probabilities"]
    np.testing.assert_array_equal(found, expected)


def test_a_processor_that_says_wordings(folder):
    def rename(settings):
        settings.pop("prompt_templates", None)
        settings["wordings"] = TEMPLATES

    edit(folder / "processor_config.json", rename)
    processor = load_processor(folder)
    assert list(processor.prompt_templates) == TEMPLATES
    processor.save_pretrained(folder)
    settings = json.loads((folder / "processor_config.json").read_text())
    assert settings["prompt_templates"] == TEMPLATES
    assert "wordings" not in settings


def test_a_calibration_that_says_wordings(folder):
    calibration = {"temperature": 2.0, "thresholds": {"0.1": 0.5}, "usual_novelty": 0.9, "alpha": 1.0, "fitted": {}}
    edit(folder / "config.json", lambda config: config.update(calibration=calibration | {"wordings": TEMPLATES}))
    model, _, _ = load_checkpoint(folder)
    found = Calibration.from_dict(model.config.calibration)
    assert list(found.prompt_templates) == TEMPLATES
    assert found.thresholds == {"0.1": 0.5}

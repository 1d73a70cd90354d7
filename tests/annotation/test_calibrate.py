# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Calibration of a checkpoint on labelled cells, and the answers of a calibrated checkpoint."""

import json
import shutil

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from transformers import AutoProcessor
from typer.testing import CliRunner

from modeling_langcell import InputError, LangCellAnnotator, LangCellConfig
from modeling_langcell.annotation.calibrate import calibrate, score_labelled
from modeling_langcell.annotation.calibration import fit
from modeling_langcell.annotation.large_files import annotate_file
from modeling_langcell.annotation.ontology_backoff import OntologyBackoff
from modeling_langcell.checkpoint.loading import load_checkpoint
from modeling_langcell.cli.main import app
from modeling_langcell.model.prompts import PROMPT_TEMPLATES
from tests.annotation.conftest import random_cells

LABELS = ["B cell", "natural killer cell", "monocyte"]


def test_the_config_records_the_fit(calibrated_checkpoint, tiny_checkpoint):
    found = LangCellConfig.from_pretrained(calibrated_checkpoint).calibration
    assert found["fitted"]["cells"] == {"one": 59, "two": 59}, "unknown is not a label"
    assert {"error_before", "error_after", "versions"} <= found["fitted"].keys()
    assert found["alpha"] == LangCellConfig.from_pretrained(tiny_checkpoint).alpha
    same = torch.nn.Module.state_dict
    first, second = (load_checkpoint(folder)[0] for folder in (calibrated_checkpoint, tiny_checkpoint))
    assert all(torch.equal(a, b) for a, b in zip(same(first).values(), same(second).values(), strict=True))


def test_scores_are_calibrated_and_give_answers(calibrated_checkpoint, tiny_checkpoint, cells):
    calibration = LangCellConfig.from_pretrained(calibrated_checkpoint).calibration
    rate = max(calibration["thresholds"], key=float)
    weight = LangCellConfig.from_pretrained(calibrated_checkpoint).marker_weight
    assert weight == calibration["marker_weight"]
    plain = LangCellAnnotator.from_pretrained(tiny_checkpoint).annotate(cells.copy(), LABELS, marker_weight=weight)
    found = LangCellAnnotator.from_pretrained(calibrated_checkpoint).annotate(
        cells.copy(), LABELS, error_rate=float(rate)
    )
    probabilities = found.obsm["langcell_probabilities"].to_numpy()
    expected = plain.obsm["langcell_probabilities"].to_numpy() ** (1 / calibration["temperature"])
    np.testing.assert_allclose(probabilities, expected / expected.sum(axis=1, keepdims=True), atol=1e-5)
    assert (found.obs["langcell_cell_type"] == plain.obs["langcell_cell_type"]).all()

    backoff = OntologyBackoff(LABELS)
    answers, confidence = backoff.answer(backoff.probabilities(probabilities), calibration["thresholds"][rate])
    nodes = [backoff.nodes[answer] if answer >= 0 else None for answer in answers]
    assert found.obs["langcell_answer"].tolist() == [node.name if node else "unknown" for node in nodes]
    assert found.obs["langcell_answer_id"].tolist() == [node.id if node else "" for node in nodes]
    np.testing.assert_allclose(found.obs["langcell_answer_probability"], confidence, atol=1e-5)
    ordered = np.sort(probabilities, axis=1)
    np.testing.assert_allclose(found.obs["langcell_margin"], ordered[:, -1] - ordered[:, -2], atol=1e-6)
    texts = LangCellAnnotator.from_pretrained(calibrated_checkpoint).embed_texts(found.uns["langcell"]["descriptions"])
    novelty = 1 - (found.obsm["X_langcell"] @ texts.T).max(axis=1)
    np.testing.assert_allclose(found.obs["langcell_novelty"], novelty, atol=1e-5)
    assert found.uns["langcell"]["error_rate"] == float(rate)


def test_a_file_gets_the_same_answers(calibrated_checkpoint, labelled_studies, tmp_path):
    annotator = LangCellAnnotator.from_pretrained(calibrated_checkpoint)
    rate = float(max(annotator.model.config.calibration["thresholds"], key=float))
    adata = ad.read_h5ad(labelled_studies[0])
    adata.obs["cluster"] = pd.Categorical(np.where(np.arange(60) % 2, "even", "odd"))
    adata.obs.loc["c3", "cluster"] = np.nan
    adata.write_h5ad(tmp_path / "in.h5ad")
    options = {"error_rate": rate, "cluster_key": "cluster"}
    annotate_file(annotator, tmp_path / "in.h5ad", tmp_path / "out.h5ad", LABELS, **options)
    expected = annotator.annotate(adata, LABELS, **options)
    found = ad.read_h5ad(tmp_path / "out.h5ad")
    pd.testing.assert_frame_equal(found.obs, expected.obs, check_categorical=False)
    assert found.uns["langcell"]["threshold"] == expected.uns["langcell"]["threshold"]


def test_there_are_no_answers_for_another_alpha(calibrated_checkpoint, cells):
    annotator = LangCellAnnotator.from_pretrained(calibrated_checkpoint)
    annotator.annotate(cells, LABELS)
    annotator.annotate(cells, LABELS, alpha=0.7)
    assert "langcell_answer" not in cells.obs, "the answer of the earlier run is deleted"
    with pytest.raises(InputError, match="needs a checkpoint that is calibrated"):
        annotator.annotate(cells, LABELS, alpha=0.7, error_rate=0.1)


class TestPromptTemplates:
    """A calibration is valid for the prompt templates that it was fitted with."""

    @pytest.fixture
    def templated(self, tiny_checkpoint, labelled_studies, tmp_path):
        processor = AutoProcessor.from_pretrained(tiny_checkpoint)
        shutil.copytree(tiny_checkpoint, tmp_path / "templated")
        processor.prompt_templates = ["{name}", "cell type : {synonym}"]
        processor.save_pretrained(tmp_path / "templated")
        calibrate(tmp_path / "templated", labelled_studies, tmp_path / "calibrated")
        return tmp_path / "calibrated"

    def test_other_templates_are_not_calibrated(self, calibrated_checkpoint, cells):
        annotator = LangCellAnnotator.from_pretrained(calibrated_checkpoint)
        annotator.processor.prompt_templates = ["{name}"]
        assert "langcell_answer" not in annotator.annotate(cells, LABELS).obs
        with pytest.raises(InputError, match="needs a checkpoint that is calibrated"):
            annotator.annotate(cells, LABELS, error_rate=0.1)

    def test_its_own_templates_are_calibrated(self, templated, cells):
        calibration = LangCellConfig.from_pretrained(templated).calibration
        assert calibration["prompt_templates"] == ["{name}", "cell type : {synonym}"]
        annotator = LangCellAnnotator.from_pretrained(templated)
        rate = float(max(annotator.model.config.calibration["thresholds"], key=float))
        assert "langcell_answer" in annotator.annotate(cells, LABELS, error_rate=rate).obs
        annotator.processor.prompt_templates = PROMPT_TEMPLATES
        with pytest.raises(InputError, match="needs a checkpoint that is calibrated"):
            annotator.annotate(cells, LABELS, error_rate=rate)

    def test_a_calibration_without_templates_is_for_the_default_ones(self, calibrated_checkpoint, cells):
        annotator = LangCellAnnotator.from_pretrained(calibrated_checkpoint)
        assert annotator.model.config.calibration.pop("prompt_templates") == [*PROMPT_TEMPLATES]
        rate = float(max(annotator.model.config.calibration["thresholds"], key=float))
        assert "langcell_answer" in annotator.annotate(cells, LABELS, error_rate=rate).obs


def test_an_error_rate_without_a_threshold_is_refused(calibrated_checkpoint, cells):
    with pytest.raises(InputError, match="calibrated for error rates of"):
        LangCellAnnotator.from_pretrained(calibrated_checkpoint).annotate(cells, LABELS, error_rate=0.123)


def test_cells_without_known_genes_have_no_answer(calibrated_checkpoint, cells):
    annotator = LangCellAnnotator.from_pretrained(calibrated_checkpoint)
    rate = float(max(annotator.model.config.calibration["thresholds"], key=float))
    cells.X = cells.X.toarray()
    cells.X[3] = 0
    annotator.annotate(cells, LABELS, error_rate=rate, empty_cells="mark")
    columns = ["langcell_answer", "langcell_answer_id", "langcell_answer_probability", "langcell_novelty"]
    assert cells.obs[columns].iloc[3].isna().all()
    assert cells.obs[columns].drop(index="cell3").notna().all(axis=None)


def test_one_type_under_two_names_is_one_candidate(tiny_checkpoint, labelled_studies, tmp_path):
    annotator = LangCellAnnotator.from_pretrained(tiny_checkpoint)
    adata = ad.read_h5ad(labelled_studies[0])
    once = score_labelled(annotator, adata, "cell_type")
    is_nk = np.flatnonzero((adata.obs["cell_type"] == "natural killer cell").to_numpy())
    adata.obs["cell_type"] = adata.obs["cell_type"].astype(str)
    adata.obs.iloc[is_nk[::2], adata.obs.columns.get_loc("cell_type")] = "NK cells"
    twice = score_labelled(annotator, adata, "cell_type")
    assert len(twice.labels) == len(once.labels) == 3
    assert np.isin(twice.truth, twice.labels).all()
    np.testing.assert_allclose(np.sort(twice.scores, axis=1), np.sort(once.scores, axis=1), atol=1e-5)
    with pytest.raises(InputError, match="must be a list of files, not one"):
        calibrate(tiny_checkpoint, labelled_studies[0], tmp_path / "out")


class TestCommand:
    def run(self, *arguments):
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    def test_calibrate_then_annotate(self, tiny_checkpoint, labelled_studies, tmp_path):
        out = tmp_path / "calibrated"
        result = self.run(
            "calibrate", *labelled_studies, "--label-key", "cell_type", "--model", tiny_checkpoint, "--out", out
        )
        assert result.exit_code == 0, result.output
        assert "expected calibration error" in result.stdout
        rates = LangCellConfig.from_pretrained(out).calibration["thresholds"]
        arguments = ("annotate", labelled_studies[0], "--model", out, "--labels", ";".join(LABELS))
        arguments = (*arguments, "--out", tmp_path / "o.h5ad", "--error-rate", max(rates, key=float))
        arguments = (*arguments, "--cluster-key", "cell_type")
        said = json.loads(self.run(*arguments, "--json").stdout)
        assert sum(answer["cells"] for answer in said["answers"]["cells"]) == said["cells"]
        assert set(said["clusters"]) == {*LABELS, "unknown"}
        shown = self.run(*arguments)
        assert "which is not promised here" in shown.stdout, "the cells have few genes"
        assert "By cell_type:" in shown.stdout

    def test_a_study_of_the_training_is_scored_by_another_checkpoint(self, tiny_checkpoint, labelled_studies, tmp_path):
        other, out = tmp_path / "other", tmp_path / "calibrated"
        model, processor, _ = load_checkpoint(tiny_checkpoint)
        with torch.no_grad():
            model.cell_projection.weight.normal_()
        model.save_pretrained(other)
        processor.save_pretrained(other)
        first, second = labelled_studies
        options = ("--label-key", "cell_type", "--marker-weight", 0, "--model", tiny_checkpoint, "--out", out)
        assert self.run("calibrate", first, *options, "--cross-fit", f"{second}={other}").exit_code == 0
        fitted = LangCellConfig.from_pretrained(out).calibration
        studies = {
            path.stem: score_labelled(LangCellAnnotator.from_pretrained(folder), ad.read_h5ad(path), "cell_type")
            for path, folder in ((first, tiny_checkpoint), (second, other))
        }
        assert fitted["temperature"] == fit(studies, model.config.alpha, 0).temperature
        assert fitted["fitted"]["cells"] == {"one": 59, "two": 59}
        assert torch.equal(
            load_checkpoint(out)[0].cell_projection.weight, load_checkpoint(tiny_checkpoint)[0].cell_projection.weight
        )

    @pytest.mark.parametrize("pair", ["two.h5ad", "two.h5ad=", "absent.h5ad=folder"])
    def test_a_pair_of_file_and_checkpoint_is_required(self, tiny_checkpoint, labelled_studies, tmp_path, pair):
        out = tmp_path / "calibrated"
        options = ("--label-key", "cell_type", "--model", tiny_checkpoint, "--out", out, "--cross-fit", pair)
        result = self.run("calibrate", labelled_studies[0], *options)
        assert (result.exit_code, out.exists()) == (2, False)
        assert f"--cross-fit {pair}: " in " ".join(result.stderr.split())

    def test_the_folder_must_be_new(self, tiny_checkpoint, labelled_studies):
        result = self.run(
            *("calibrate", labelled_studies[0], "--label-key", "cell_type"),
            *("--model", tiny_checkpoint, "--out", tiny_checkpoint),
        )
        assert result.exit_code == 2
        assert "already exists" in result.output

    def test_types_outside_the_ontology_are_refused(self, tiny_checkpoint, tmp_path):
        adata = random_cells(6, 0)
        adata.obs["mine"] = ["x", "y"] * 3
        adata.write_h5ad(tmp_path / "odd.h5ad")
        result = self.run(
            *("calibrate", tmp_path / "odd.h5ad", "--label-key", "mine"),
            *("--model", tiny_checkpoint, "--out", tmp_path / "out"),
        )
        assert result.exit_code == 2
        assert "does not know 'x'" in result.output
        assert not (tmp_path / "out").exists()

    def test_cells_without_known_genes_are_refused_with_advice_that_works(self, tiny_checkpoint, cells, tmp_path):
        cells.obs["mine"] = ["B cell", "monocyte"] * (cells.n_obs // 2)
        cells.X[3] = 0
        cells.write_h5ad(tmp_path / "cells.h5ad")
        result = self.run(
            *("calibrate", tmp_path / "cells.h5ad", "--label-key", "mine"),
            *("--model", tiny_checkpoint, "--out", tmp_path / "out"),
        )
        assert result.exit_code == 2
        assert "'cell3'. Filter them out." in result.output
        assert "--empty-cells" not in result.output

    def test_settings_of_later_versions_are_skipped(self, calibrated_checkpoint, cells, tmp_path):
        shutil.copytree(calibrated_checkpoint, tmp_path / "model")
        config = json.loads((tmp_path / "model" / "config.json").read_text())
        config["calibration"]["later"] = 1
        (tmp_path / "model" / "config.json").write_text(json.dumps(config))
        annotator = LangCellAnnotator.from_pretrained(tmp_path / "model", device="cpu")
        assert "langcell_answer" in annotator.annotate(cells, ["B cell", "monocyte"]).obs

    def test_a_damaged_calibration_is_an_input_error(self, tiny_checkpoint, cells, tmp_path):
        shutil.copytree(tiny_checkpoint, tmp_path / "model")
        config = json.loads((tmp_path / "model" / "config.json").read_text())
        (tmp_path / "model" / "config.json").write_text(json.dumps(config | {"calibration": {"temperature": 0}}))
        cells.write_h5ad(tmp_path / "cells.h5ad")
        result = self.run(
            "annotate", tmp_path / "cells.h5ad", "--model", tmp_path / "model", "--labels", "B cell;T cell"
        )
        assert result.exit_code == 2
        assert "calibration is not what langcell calibrate writes" in result.output
        assert list(tmp_path.glob("*langcell*")) == []

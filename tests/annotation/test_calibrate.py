# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""From cells of known types to a checkpoint that knows its doubt, and to answers that say it."""

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
from modeling_langcell.annotation.calibrate import calibrate
from modeling_langcell.annotation.calibration import calibrated
from modeling_langcell.annotation.large_files import annotate_file
from modeling_langcell.annotation.ontology_backoff import OntologyBackoff
from modeling_langcell.checkpoint.loading import load_checkpoint
from modeling_langcell.cli.main import app
from modeling_langcell.model.prompts import PROMPT_TEMPLATES
from tests.support.tiny import GENES

LABELS = ["B cell", "natural killer cell", "monocyte"]


def labelled_cells(cells, seed):
    rng = np.random.default_rng(seed)
    counts = rng.poisson(rng.gamma(0.5, 2.0, size=(cells, len(GENES)))).astype(np.float32)
    counts[:, 0] += 1
    obs = pd.DataFrame(index=[f"c{number}" for number in range(cells)])
    return ad.AnnData(counts, obs=obs, var=pd.DataFrame(index=GENES))


@pytest.fixture(scope="module")
def studies(tiny_checkpoint, tmp_path_factory):
    """Two studies, whose labels the random checkpoint finds in two cells of three."""
    folder = tmp_path_factory.mktemp("studies")
    annotator = LangCellAnnotator.from_pretrained(tiny_checkpoint)
    for seed, name in enumerate(("one", "two")):
        adata = labelled_cells(60, seed)
        found = annotator.annotate(adata.copy(), LABELS).obs["langcell_cell_type"].astype(str).to_numpy()
        other = np.random.default_rng(seed).choice(LABELS, 60)
        adata.obs["cell_type"] = np.where(np.arange(60) % 3, found, other)
        adata.obs.loc["c0", "cell_type"] = "unknown"
        adata.write_h5ad(folder / f"{name}.h5ad")
    return [folder / "one.h5ad", folder / "two.h5ad"]


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint, studies, tmp_path_factory):
    folder = tmp_path_factory.mktemp("calibrated") / "calibrated"
    calibrate(tiny_checkpoint, studies, folder)
    return folder


def test_the_config_says_how_it_was_fitted(checkpoint, tiny_checkpoint):
    found = LangCellConfig.from_pretrained(checkpoint).calibration
    assert found["fitted"]["cells"] == {"one": 59, "two": 59}, "unknown is no label"
    assert {"error_before", "error_after", "versions"} <= found["fitted"].keys()
    assert found["alpha"] == LangCellConfig.from_pretrained(tiny_checkpoint).alpha
    same = torch.nn.Module.state_dict
    first, second = (load_checkpoint(folder)[0] for folder in (checkpoint, tiny_checkpoint))
    assert all(torch.equal(a, b) for a, b in zip(same(first).values(), same(second).values(), strict=True))


def test_scores_are_calibrated_and_answers_follow_from_them(checkpoint, tiny_checkpoint, cells):
    calibration = LangCellConfig.from_pretrained(checkpoint).calibration
    rate = max(calibration["thresholds"], key=float)
    plain = LangCellAnnotator.from_pretrained(tiny_checkpoint).annotate(cells.copy(), LABELS)
    found = LangCellAnnotator.from_pretrained(checkpoint).annotate(cells.copy(), LABELS, error_rate=float(rate))
    probabilities = found.obsm["langcell_probabilities"].to_numpy()
    expected = calibrated(plain.obsm["langcell_probabilities"].to_numpy(), calibration["temperature"])
    np.testing.assert_allclose(probabilities, expected, atol=1e-5)
    assert (found.obs["langcell_cell_type"] == plain.obs["langcell_cell_type"]).all()

    hierarchy = OntologyBackoff(LABELS)
    answers, confidence = hierarchy.answer(hierarchy.probabilities(probabilities), calibration["thresholds"][rate])
    nodes = [hierarchy.nodes[answer] if answer >= 0 else None for answer in answers]
    assert found.obs["langcell_answer"].tolist() == [node.name if node else "unknown" for node in nodes]
    assert found.obs["langcell_answer_id"].tolist() == [node.id if node else "" for node in nodes]
    np.testing.assert_allclose(found.obs["langcell_answer_probability"], confidence, atol=1e-5)
    ordered = np.sort(probabilities, axis=1)
    np.testing.assert_allclose(found.obs["langcell_margin"], ordered[:, -1] - ordered[:, -2], atol=1e-6)
    texts = LangCellAnnotator.from_pretrained(checkpoint).embed_texts(found.uns["langcell"]["descriptions"])
    novelty = 1 - (found.obsm["X_langcell"] @ texts.T).max(axis=1)
    np.testing.assert_allclose(found.obs["langcell_novelty"], novelty, atol=1e-5)
    assert found.uns["langcell"]["error_rate"] == float(rate)


def test_files_say_the_same(checkpoint, studies, tmp_path):
    annotator = LangCellAnnotator.from_pretrained(checkpoint)
    rate = float(max(annotator.model.config.calibration["thresholds"], key=float))
    adata = ad.read_h5ad(studies[0])
    adata.obs["cluster"] = pd.Categorical(np.where(np.arange(60) % 2, "even", "odd"))
    adata.obs.loc["c3", "cluster"] = np.nan
    adata.write_h5ad(tmp_path / "in.h5ad")
    options = {"error_rate": rate, "cluster_key": "cluster"}
    annotate_file(annotator, tmp_path / "in.h5ad", tmp_path / "out.h5ad", LABELS, **options)
    expected = annotator.annotate(adata, LABELS, **options)
    found = ad.read_h5ad(tmp_path / "out.h5ad")
    pd.testing.assert_frame_equal(found.obs, expected.obs, check_categorical=False)
    assert found.uns["langcell"]["threshold"] == expected.uns["langcell"]["threshold"]


def test_another_alpha_is_not_calibrated(checkpoint, cells):
    annotator = LangCellAnnotator.from_pretrained(checkpoint)
    annotator.annotate(cells, LABELS)
    annotator.annotate(cells, LABELS, alpha=0.7)
    assert "langcell_answer" not in cells.obs, "it would be of the earlier run"
    with pytest.raises(InputError, match="needs a checkpoint that is calibrated"):
        annotator.annotate(cells, LABELS, alpha=0.7, error_rate=0.1)


class TestWordings:
    """A calibration is of scores that were found with labels worded in some way."""

    @pytest.fixture
    def worded(self, tiny_checkpoint, studies, tmp_path):
        processor = AutoProcessor.from_pretrained(tiny_checkpoint)
        shutil.copytree(tiny_checkpoint, tmp_path / "worded")
        processor.prompt_templates = ["{name}", "cell type : {synonym}"]
        processor.save_pretrained(tmp_path / "worded")
        calibrate(tmp_path / "worded", studies, tmp_path / "calibrated")
        return tmp_path / "calibrated"

    def test_others_are_not_calibrated(self, checkpoint, cells):
        annotator = LangCellAnnotator.from_pretrained(checkpoint)
        annotator.processor.prompt_templates = ["{name}"]
        assert "langcell_answer" not in annotator.annotate(cells, LABELS).obs
        with pytest.raises(InputError, match="needs a checkpoint that is calibrated"):
            annotator.annotate(cells, LABELS, error_rate=0.1)

    def test_those_it_was_fitted_with_are(self, worded, cells):
        calibration = LangCellConfig.from_pretrained(worded).calibration
        assert calibration["prompt_templates"] == ["{name}", "cell type : {synonym}"]
        annotator = LangCellAnnotator.from_pretrained(worded)
        rate = float(max(annotator.model.config.calibration["thresholds"], key=float))
        assert "langcell_answer" in annotator.annotate(cells, LABELS, error_rate=rate).obs
        annotator.processor.prompt_templates = PROMPT_TEMPLATES
        with pytest.raises(InputError, match="needs a checkpoint that is calibrated"):
            annotator.annotate(cells, LABELS, error_rate=rate)

    def test_an_older_one_is_of_the_one_wording(self, checkpoint, cells):
        annotator = LangCellAnnotator.from_pretrained(checkpoint)
        assert annotator.model.config.calibration.pop("prompt_templates") == [*PROMPT_TEMPLATES]
        rate = float(max(annotator.model.config.calibration["thresholds"], key=float))
        assert "langcell_answer" in annotator.annotate(cells, LABELS, error_rate=rate).obs


def test_an_error_rate_that_was_not_fitted(checkpoint, cells):
    with pytest.raises(InputError, match="calibrated for an error rate of"):
        LangCellAnnotator.from_pretrained(checkpoint).annotate(cells, LABELS, error_rate=0.123)


def test_cells_without_known_genes_have_no_answer(checkpoint, cells):
    annotator = LangCellAnnotator.from_pretrained(checkpoint)
    rate = float(max(annotator.model.config.calibration["thresholds"], key=float))
    cells.X = cells.X.toarray()
    cells.X[3] = 0
    annotator.annotate(cells, LABELS, error_rate=rate, empty_cells="mark")
    columns = ["langcell_answer", "langcell_answer_id", "langcell_answer_probability", "langcell_novelty"]
    assert cells.obs[columns].iloc[3].isna().all()
    assert cells.obs[columns].drop(index="cell3").notna().all(axis=None)


class TestConsensus:
    def test_without_calibration_it_is_the_best_of_the_mean(self, tiny_checkpoint, cells):
        cells.obs["leiden"] = [*"aabbbcccccc", None]
        LangCellAnnotator.from_pretrained(tiny_checkpoint).annotate(cells, LABELS, cluster_key="leiden")
        means = cells.obsm["langcell_probabilities"].groupby(cells.obs["leiden"].to_numpy()).mean()
        for cluster, label in means.idxmax(axis=1).items():
            own = cells.obs[cells.obs["leiden"] == cluster]
            assert (own["langcell_consensus"] == label).all()
            share = (own["langcell_cell_type"] == label).mean()
            np.testing.assert_allclose(own["langcell_consensus_agreement"], share)
        assert cells.obs[["langcell_consensus", "langcell_consensus_agreement"]].iloc[-1].isna().all()
        assert cells.uns["langcell"]["cluster_key"] == "leiden"

    def test_calibrated_it_is_the_answer_to_the_mean(self, checkpoint, cells):
        cells.obs["leiden"] = list("aaaabbbbcccc")
        annotator = LangCellAnnotator.from_pretrained(checkpoint)
        calibration = annotator.model.config.calibration
        rate = max(calibration["thresholds"], key=float)
        annotator.annotate(cells, LABELS, cluster_key="leiden", error_rate=float(rate))
        means = cells.obsm["langcell_probabilities"].groupby(cells.obs["leiden"].to_numpy()).mean()
        hierarchy = OntologyBackoff(LABELS)
        answers, _ = hierarchy.answer(hierarchy.probabilities(means.to_numpy()), calibration["thresholds"][rate])
        for cluster, answer in zip(means.index, answers, strict=True):
            said = hierarchy.nodes[answer] if answer >= 0 else None
            own = cells.obs[cells.obs["leiden"] == cluster]
            assert set(own["langcell_consensus"]) == {said.name if said else "unknown"}
            assert set(own["langcell_consensus_id"]) == {said.id if said else ""}
            best = [LABELS.index(label) for label in own["langcell_cell_type"]]
            share = hierarchy.holds(np.full(len(best), answer), np.array(best)).mean()
            np.testing.assert_allclose(own["langcell_consensus_agreement"], share)

    @pytest.mark.parametrize(("key", "message"), [("nowhere", "No column"), ("empty", "holds no cluster")])
    def test_no_clusters(self, tiny_checkpoint, cells, key, message):
        cells.obs["empty"] = pd.Series([None] * cells.n_obs, index=cells.obs_names, dtype="object")
        with pytest.raises(InputError, match=message):
            LangCellAnnotator.from_pretrained(tiny_checkpoint).annotate(cells, LABELS, cluster_key=key)


class TestCommand:
    def run(self, *arguments):
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    def test_calibrate_then_annotate(self, tiny_checkpoint, studies, tmp_path):
        out = tmp_path / "calibrated"
        result = self.run("calibrate", *studies, "--label-key", "cell_type", "--model", tiny_checkpoint, "--out", out)
        assert result.exit_code == 0, result.output
        assert "expected calibration error" in result.stdout
        rates = LangCellConfig.from_pretrained(out).calibration["thresholds"]
        arguments = ("annotate", studies[0], "--model", out, "--labels", ";".join(LABELS), "--out", tmp_path / "o.h5ad")
        arguments = (*arguments, "--error-rate", max(rates, key=float), "--cluster-key", "cell_type")
        said = json.loads(self.run(*arguments, "--json").stdout)
        assert sum(answer["cells"] for answer in said["answers"]["cells"]) == said["cells"]
        assert set(said["consensus"]) == {*LABELS, "unknown"}
        shown = self.run(*arguments)
        assert "can be answered so surely" in shown.stdout
        assert "By cell_type:" in shown.stdout

    def test_the_folder_must_be_new(self, tiny_checkpoint, studies):
        result = self.run(
            *("calibrate", studies[0], "--label-key", "cell_type"),
            *("--model", tiny_checkpoint, "--out", tiny_checkpoint),
        )
        assert result.exit_code == 2
        assert "exists already" in result.output

    def test_types_that_the_ontology_does_not_know(self, tiny_checkpoint, tmp_path):
        adata = labelled_cells(6, 0)
        adata.obs["mine"] = ["x", "y"] * 3
        adata.write_h5ad(tmp_path / "odd.h5ad")
        result = self.run(
            *("calibrate", tmp_path / "odd.h5ad", "--label-key", "mine"),
            *("--model", tiny_checkpoint, "--out", tmp_path / "out"),
        )
        assert result.exit_code == 2
        assert "does not know 'x'" in result.output
        assert not (tmp_path / "out").exists()

    def test_a_damaged_calibration_is_one_message(self, tiny_checkpoint, cells, tmp_path):
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

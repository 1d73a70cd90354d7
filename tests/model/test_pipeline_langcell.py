# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""transformers' pipeline: the annotator's scores, from the package and from a repository's own code."""

import json

import numpy as np
import pytest
from transformers import AutoModel, pipeline

from modeling_langcell import InputError, LangCellAnnotator, LangCellForPreTraining, ZeroShotCellAnnotationPipeline
from tests.support.commands import run_without_the_package
from tests.support.tiny import tiny_config

TASK = "zero-shot-cell-annotation"
DESCRIPTIONS = {"NK": "cell type : nk .", "monocyte": "cell type : monocyte .", "B": "b cell"}

#: A process without the package: a saved folder, cells and descriptions to answers.
WITHOUT_THE_PACKAGE = """
import json, sys


class NotInstalled:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "modeling_langcell":
            raise ModuleNotFoundError(f"No module named {name!r}")


sys.meta_path.insert(0, NotInstalled())
import anndata as ad
from transformers import pipeline

folder, cells, candidates, answers = sys.argv[1:]
try:
    pipeline("zero-shot-cell-annotation", model=folder)
    sys.exit("It ran the repository's code unasked.")
except ValueError as error:
    assert "trust_remote_code" in str(error), error
annotate = pipeline("zero-shot-cell-annotation", model=folder, trust_remote_code=True)
assert type(annotate).__module__.startswith("transformers_modules."), type(annotate)
with open(answers, "w") as file:
    json.dump(annotate(ad.read_h5ad(cells), candidate_labels=json.loads(candidates)), file)
"""


@pytest.fixture
def annotate(tiny_checkpoint):
    return pipeline(TASK, model=str(tiny_checkpoint), device="cpu")


def scores(answers, labels) -> np.ndarray:
    by_label = [{one["label"]: one["score"] for one in answer} for answer in answers]
    return np.array([[found[label] for label in labels] for found in by_label], dtype=np.float32)


class TestInThePackage:
    def test_it_is_registered(self, annotate):
        assert type(annotate) is ZeroShotCellAnnotationPipeline

    @pytest.mark.parametrize("alpha", [0.4, 1, None])
    def test_scores_are_the_annotators(self, annotate, tiny_checkpoint, cells, alpha):
        answers = annotate(cells, candidate_labels=DESCRIPTIONS, alpha=alpha)
        LangCellAnnotator.from_pretrained(tiny_checkpoint, device="cpu").annotate(cells, DESCRIPTIONS, alpha=alpha)
        found = scores(answers, DESCRIPTIONS)
        assert np.array_equal(found, cells.obsm["langcell_probabilities"].to_numpy())
        assert [answer[0]["label"] for answer in answers] == cells.obs["langcell_cell_type"].tolist()
        assert [answer[0]["score"] for answer in answers] == pytest.approx(found.max(axis=1))

    def test_names_become_descriptions(self, annotate, cells):
        by_name = annotate(cells, candidate_labels=["nk", "monocyte"])
        described = annotate(cells, candidate_labels={"nk": "cell type: nk.", "monocyte": "cell type: monocyte."})
        assert by_name == described
        bare = annotate(cells, candidate_labels=["nk", "monocyte"], hypothesis_template="{}")
        assert bare == annotate(cells, candidate_labels={"nk": "nk", "monocyte": "monocyte"}) != by_name

    def test_several_descriptions_and_prompt_templates(self, annotate, tiny_checkpoint, cells):
        several = DESCRIPTIONS | {"NK": ["cell type : nk .", "a natural killer"]}
        found = scores(annotate(cells, candidate_labels=several), several)
        LangCellAnnotator.from_pretrained(tiny_checkpoint, device="cpu").annotate(cells, several)
        assert np.array_equal(found, cells.obsm["langcell_probabilities"].to_numpy())
        annotate.processor.prompt_templates = ["{name}", "a {name}", "{name}: {definition}", "{synonym}"]
        by_name = annotate(cells, candidate_labels=["nk", "monocyte"])
        assert by_name == annotate(cells, candidate_labels={name: [name, f"a {name}"] for name in ["nk", "monocyte"]})
        by_template = annotate(cells, candidate_labels=["nk", "monocyte"], hypothesis_template="a {}")
        assert by_template == annotate(cells, candidate_labels={name: f"a {name}" for name in ["nk", "monocyte"]})

    def test_best_first_and_top_k(self, annotate, cells):
        answers = annotate(cells, candidate_labels=DESCRIPTIONS)
        for answer in answers:
            assert [one["score"] for one in answer] == sorted((one["score"] for one in answer), reverse=True)
        best = annotate(cells, candidate_labels=DESCRIPTIONS, top_k=1)
        assert best == [answer[:1] for answer in answers]

    @pytest.mark.parametrize("kind", [tuple, np.array, iter, lambda names: dict.fromkeys(names).keys()])
    def test_labels_of_any_kind(self, annotate, cells, kind):
        names = ["nk", "monocyte {x}"]
        both = annotate([cells, cells], candidate_labels=kind(names), batch_size=2)
        assert both == [annotate(cells, candidate_labels=names)] * 2
        assert {type(one["label"]) for one in both[0][0]} == {str}

    def test_several_inputs(self, annotate, cells):
        both = annotate([cells[:5].copy(), cells[5:].copy()], candidate_labels=DESCRIPTIONS)
        assert [len(one) for one in both] == [5, 7]
        apart = scores([*both[0], *both[1]], DESCRIPTIONS)
        together = scores(annotate(cells, candidate_labels=DESCRIPTIONS), DESCRIPTIONS)
        assert apart == pytest.approx(together, abs=1e-5)

    def test_backed_cells_and_options(self, annotate, cells, tmp_path):
        import anndata as ad

        cells.layers["counts"] = cells.X.copy()
        cells.X = cells.X * 0.37
        cells.write_h5ad(tmp_path / "cells.h5ad")
        backed = ad.read_h5ad(tmp_path / "cells.h5ad", backed="r")
        named = annotate(backed, candidate_labels=DESCRIPTIONS, layer="counts")
        assert named == annotate(cells, candidate_labels=DESCRIPTIONS, layer="counts")
        assert named == annotate(cells, candidate_labels=DESCRIPTIONS), "the layer is found"
        with pytest.raises(InputError, match="raw counts"):
            annotate(cells, candidate_labels=DESCRIPTIONS, counts="raw")

    def test_cells_without_genes(self, annotate, cells):
        cells = cells[[0, 1, 2, 3, 4]].copy()
        cells.X.data[cells.X.indptr[3] : cells.X.indptr[4]] = 0
        with pytest.raises(InputError):
            annotate(cells, candidate_labels=DESCRIPTIONS)
        answers = annotate(cells, candidate_labels=DESCRIPTIONS, empty_cells="mark")
        assert answers[3] == []
        assert all(len(answer) == 3 for row, answer in enumerate(answers) if row != 3)

    @pytest.mark.parametrize(
        ("given", "fault"),
        [
            ({}, "No candidates"),
            ({"candidate_labels": []}, "No candidates"),
            ({"candidate_labels": "nk"}, "several labels"),
            ({"candidate_labels": ["nk", "nk"]}, "twice"),
            ({"candidate_labels": ["nk"], "hypothesis_template": "cell"}, "has no {}"),
            ({"candidate_labels": ["nk"], "hypothesis_template": 5}, "has no {}"),
            ({"candidate_labels": ["nk", None]}, "must be texts"),
            ({"candidate_labels": {"nk": {"genes": ["GNLY"]}}}, "has 'genes'"),
            ({"candidate_labels": {"nk": ["nk", ""]}}, "must be texts"),
            ({"candidate_labels": {"nk": []}}, "must be texts"),
            ({"candidate_labels": ["nk"], "alpha": 1.5}, "alpha=1.5"),
            ({"candidate_labels": ["nk"], "alpha": "x"}, "alpha='x'"),
            ({"candidate_labels": ["nk"], "top_k": 0}, "top_k=0"),
            ({"candidate_labels": ["nk"], "top_k": -1}, "top_k=-1"),
            ({"candidate_labels": ["nk"], "top_k": 1.5}, "top_k=1.5"),
        ],
    )
    def test_refuses(self, annotate, cells, given, fault):
        with pytest.raises(InputError, match=fault):
            annotate(cells, **given)


class TestSaved:
    def test_a_misspelt_argument_is_named_with_the_closest(self, annotate, cells):
        with pytest.raises(TypeError, match=r"^There is no argument 'organsm': did you mean 'organism'\?$"):
            annotate(cells, candidate_labels=["nk"], organsm="human")

    def test_model_processor_and_code_go_together(self, annotate, tiny_checkpoint, cells, tmp_path):
        annotate.save_pretrained(tmp_path / "saved")
        saved, checkpoint = (
            {path.name for path in folder.iterdir()} for folder in (tmp_path / "saved", tiny_checkpoint)
        )
        assert saved == checkpoint
        assert {"pipeline_langcell.py", "processor_config.json", "tokenizer.json"} <= saved
        again = pipeline(TASK, model=str(tmp_path / "saved"), device="cpu")
        assert again(cells, candidate_labels=DESCRIPTIONS) == annotate(cells, candidate_labels=DESCRIPTIONS)

    def test_the_config_names_it_however_it_was_saved(self, tiny_checkpoint, tmp_path):
        for number, model in enumerate(
            (AutoModel.from_pretrained(tiny_checkpoint), LangCellForPreTraining(tiny_config()))
        ):
            model.save_pretrained(tmp_path / str(number))
            config = json.loads((tmp_path / str(number) / "config.json").read_text())
            assert config["custom_pipelines"] == {
                TASK: {"impl": "pipeline_langcell.ZeroShotCellAnnotationPipeline", "pt": ["AutoModel"]}
            }

    def run_without_the_package(self, folder, cells, candidates, tmp_path):
        cells.write_h5ad(tmp_path / "cells.h5ad")
        arguments = (folder, tmp_path / "cells.h5ad", json.dumps(candidates), "answers.json")
        cache = tmp_path / "cache"
        done = run_without_the_package("-I", "-c", WITHOUT_THE_PACKAGE, *arguments, cwd=tmp_path, cache=cache)
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads((tmp_path / "answers.json").read_text())

    @pytest.mark.long
    def test_without_the_package(self, annotate, tiny_checkpoint, cells, tmp_path):
        answers = self.run_without_the_package(tiny_checkpoint, cells, DESCRIPTIONS, tmp_path)
        # Threads may be shared out otherwise there, and sums rounded otherwise.
        expected = scores(annotate(cells, candidate_labels=DESCRIPTIONS), DESCRIPTIONS)
        assert scores(answers, DESCRIPTIONS) == pytest.approx(expected, abs=1e-6)

    def test_prompt_templates_are_saved_with_it(self, annotate, cells, tmp_path):
        annotate.processor.prompt_templates = ["cell type : {name} . {definition}", "a {name}", "{name}"]
        annotate.save_pretrained(tmp_path / "saved")
        names = ["nk", "monocyte"]
        answers = self.run_without_the_package(tmp_path / "saved", cells, names, tmp_path)
        expected = scores(annotate(cells, candidate_labels={name: [f"a {name}", name] for name in names}), names)
        assert scores(answers, names) == pytest.approx(expected, abs=1e-6)

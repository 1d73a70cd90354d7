# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""The throughput script at a tiny size: it runs and its records are complete. No test asserts a speed."""

import json

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp
import torch
from datasets import Dataset

from modeling_langcell import LangCellConfig
from modeling_langcell.eval.benchmarks import annotation_rate, training_rate
from modeling_langcell.eval.benchmarks.index_recall import spread
from modeling_langcell.eval.benchmarks.kernel_choices import measure_choices, measure_mini
from modeling_langcell.eval.benchmarks.naive import NaiveProcedure
from modeling_langcell.eval.benchmarks.tokenizing_rate import disagreements
from tests.support.commands import run_python
from tests.support.paths import REPOSITORY


@pytest.fixture(scope="module")
def throughput(tmp_path_factory) -> dict:
    file = tmp_path_factory.mktemp("throughput") / "figures.json"
    options = ["--quick", "--cells", "60", "--genes", "300", "--dense-cells", "30", "--seed", "3", "--json", str(file)]
    run_python("eval/benchmarks/throughput.py", "tokenize", *options, cwd=REPOSITORY, check=True)
    return json.loads(file.read_text())


@pytest.mark.long
def test_the_time_of_markers_is_measured_in_turn(shared, tmp_path):
    cells, file = shared / "data" / "validation" / "zheng68k_subset_pbmc.h5ad", tmp_path / "markers.json"
    options = ["--cells", str(cells), "--candidates", "3", "--rounds", "3", "--json", str(file)]
    run_python("eval/benchmarks/throughput.py", "markers", *options, cwd=REPOSITORY, check=True)
    found = json.loads(file.read_text())
    assert (found["cells"], found["candidates"]) == (165, 3)
    assert found["ratio"] == pytest.approx(np.median([pair["with"] / pair["without"] for pair in found["seconds"]]))


def test_both_procedures_give_the_same_ids(throughput):
    assert throughput["cells_compared"] == 60
    assert throughput["cells_that_differ"] == 0


def test_the_figures_are_there(throughput):
    assert (throughput["cells"], throughput["genes"], throughput["published_cells_per_round"]) == (60, 300, 30)
    assert 0.05 < throughput["density"] < 0.12
    for procedure in ("extractor", "extractor_one_thread", "published"):
        assert len(throughput["cells_per_second_by_round"][procedure]) == 2
        assert throughput["cells_per_second"][procedure] > 0
    for ratio, procedure in (("ratio", "extractor"), ("ratio_one_thread", "extractor_one_thread")):
        pairs = zip(*(throughput["cells_per_second_by_round"][name] for name in (procedure, "published")), strict=True)
        assert throughput["ratio_by_round"][procedure] == pytest.approx([ours / theirs for ours, theirs in pairs])
        assert throughput[ratio] == pytest.approx(np.median(throughput["ratio_by_round"][procedure]))
    assert 0 < throughput["peak_gb_above_input"]["stream"] <= throughput["peak_gb_above_input"]["batch"]


def test_the_run_can_be_repeated_from_the_record(throughput):
    assert throughput["command"].startswith("python eval/benchmarks/throughput.py tokenize --quick --cells 60")
    assert throughput["seed"] == 3
    assert {"python", "numpy", "scipy", "torch", "transformers", "datasets"} <= set(throughput["versions"])
    assert throughput["machine"]["cpus"] >= throughput["machine"]["threads"] >= 1
    assert throughput["machine"]["cpu"]


def test_a_disagreement_is_found():
    """Equal values may come in any order; a different gene or a different order of unequal ones is a disagreement."""
    values = sp.csr_matrix(np.array([[0, 0, 5.0, 3.0, 3.0, 0, 0]] * 5))
    published = Dataset.from_dict({"input_ids": [[6, 2, 3, 4]] * 5})
    ranked = [np.array(ids) for ids in ([6, 2, 3, 4], [6, 2, 4, 3], [6, 3, 2, 4], [6, 2, 3], [6, 2, 3, 3])]
    assert disagreements(ranked, published, values) == (4, 3)


@pytest.fixture(scope="module")
def context(shared):
    """Real cells and a model with few layers."""
    small = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}
    small |= {"initializer_range": 0.5}
    geometry = LangCellConfig(cell_config=small, text_config=small | {"num_hidden_layers": 3}, initializer_range=0.5)
    cells = shared / "data" / "validation" / "zheng68k_subset_pbmc.h5ad"
    return annotation_rate.BenchmarkContext(cells, torch.device("cpu"), seed=0, geometry=geometry)


@torch.no_grad()
def test_the_naive_procedure_is_the_published_one(context):
    """It agrees with the model's own forward, which is tested against the recorded run of the public code."""
    ids, mask = context.pad(context.batch()[:6])
    texts = context.processor(text=context.descriptions[:5], return_tensors="pt")
    out = context.model(ids, mask, **texts, return_matching=True)
    match = out.matching_logits.softmax(dim=-1)[..., 1]
    assert match.std() > 0.01
    expected = 0.1 * out.logits_per_cell.softmax(dim=-1) + 0.9 * match.softmax(dim=-1)
    found = NaiveProcedure(context.model, context.texts(5), 0.1)(ids, mask)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.long
def test_the_rate_of_annotation(context):
    ways = [
        annotation_rate.Setting(candidates, shortlist, precision, 4)
        for precision in annotation_rate.fast_on(context.device)
        for candidates, shortlist in ((3, None), (40, None), (40, 2))
    ]
    said = []
    figures = annotation_rate.measure_annotation(context, ways, 2, 2, 3, said.append)
    assert len(said) == 3 * len(ways), "one line when it is ready, and one per round"
    assert figures["naive_cells_per_second"].keys() == {3, 40}
    for way, one in zip(ways, figures["ways"], strict=True):
        assert (one["candidates"], one["way"]) == (way.candidates, way.way)
        assert ("share_of_floor" in one) == (way.shortlist is None)
        assert 0 < one.get("share_of_floor", 1) < 1.5
        assert one["ratio"] == pytest.approx(np.median(one["ratio_by_round"]))
        assert min(one["cells_per_second"], *one["ratio_by_round"]) > 0
        if way.way == "float32":
            assert one["same_answer"] == 1
    assert annotation_rate.largest_difference(context, 4, 2) < 1e-5
    figures["cell_tower"] = annotation_rate.measure_cell_tower(context, (16, 32), 1)
    assert [one["length"] for one in figures["cell_tower"]] == [16, 32]
    left, right = annotation_rate.draw(figures).axes
    assert len(left.lines) == 1 + len({way.way for way in ways})
    assert len(right.lines) == 1 + len([*annotation_rate.fast_on(context.device)])


def test_the_cost_of_a_text_depends_on_its_length(context):
    seconds = annotation_rate.NaiveSeconds(context, context.batch(), context.texts(6), 2)
    seconds.matching = [32.0, 64.0]
    seconds._known = np.array([10, 20])
    seconds.lengths = np.array([10, 15, 20])
    assert seconds.match(3) == pytest.approx((32 + 48 + 64) / 32)
    assert seconds.match(1) == pytest.approx(1)
    assert seconds.annotate(1) == pytest.approx(1 + seconds.encoding / 32)


def test_the_rate_of_matching(context):
    figures = annotation_rate.measure_matching(context, 5, 2, 2, 3)
    assert figures["ratio"] == figures["ratios"]["float32"] == np.median(figures["ratio_by_round"]["float32"])
    assert all(rate > 0 for rate in figures["pairs_per_second"].values())


def test_other_kernels_give_the_same(context, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda tower, **_: tower)  # Compilation takes half a minute and a compiler.
    torch.manual_seed(0)
    figures = measure_choices(context, 32, 2)
    assert {"naive", "float32", "float32, compiled", "int8 weights"} <= figures["ways"].keys()
    assert figures["ways"]["naive"]["ratio"] == 1
    for way, one in figures["ways"].items():
        # int8 is inaccurate for weights as large as these.
        assert one["cosine"] > (0.99999 if way.startswith(("naive", "float32")) else 0.5), way


def test_langcell_mini_is_measured_with_int8_weights(shared):
    cells = ad.read_h5ad(shared / "data" / "validation" / "zheng68k_subset_pbmc.h5ad")[:20].to_memory()
    found = measure_mini(cells, ["B cell", "monocyte", "T cell"], torch.device("cpu"), 1)
    assert (found["float32"]["ratio"], found["float32"]["same_label"]) == (1, 1)
    assert 0.99 < found["int8 weights"]["cosine"] < 0.99999


@pytest.mark.e2e
@pytest.mark.heavy
def test_a_killed_study_continues(shared, tmp_path):
    file = tmp_path / "figures.json"
    cells = shared / "data" / "validation" / "zheng68k_subset_pbmc.h5ad"
    options = ["--cells", str(cells), "--number", "13000", "--kill-at", "0.3", "--kill-at", "0.6", "--unbroken"]
    options += ["--json", str(file)]
    run_python("eval/benchmarks/throughput.py", "study", *options, cwd=REPOSITORY, check=True)
    report = json.loads(file.read_text())
    *killed, finished = report["runs"]
    assert [run["ended_by"] for run in killed] == ["SIGKILL", "SIGKILL"]
    assert finished["ended_by"] == 0
    assert killed[1]["cells_done"] == report["cells_done_before"] >= 8192
    assert report["is_identical"]
    assert finished["cells_done"] == report["cells"] == sum(report["labels"].values()) == 13000
    assert report["equal_cells_get_equal_answers"] == 1
    assert report["nothing_left"]


@pytest.mark.e2e
@pytest.mark.heavy
def test_the_first_answer(shared, tmp_path):
    file = tmp_path / "figures.json"
    cells = shared / "data" / "validation" / "zheng68k_subset_pbmc.h5ad"
    options = ["--cells", str(cells), "--rounds", "1", "--before", str(REPOSITORY), "--json", str(file)]
    run_python("eval/benchmarks/throughput.py", "first", *options, cwd=REPOSITORY, check=True)
    ways = json.loads(file.read_text())["ways"]
    assert list(ways) == ["imports", "annotate", "annotate with report and figure"]
    for way in ways.values():
        assert way["ratio"] > 0
        assert way["before"]["cpu_seconds"] > 1, "that of the child, which imports torch"


def test_further_embeddings_lie_between_neighbours():
    rng = np.random.default_rng(0)
    embeds = rng.normal(size=(40, 8)).astype(np.float32)
    embeds /= np.linalg.norm(embeds, axis=1, keepdims=True)
    found = spread(embeds, 100, rng)
    np.testing.assert_array_equal(found[:40], embeds)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)
    assert len(np.unique(found.round(6), axis=0)) == 100
    assert (found[40:] @ embeds.T).max(axis=1).min() > 0.5


@pytest.mark.e2e
@pytest.mark.heavy
def test_an_index_finds_what_looking_at_all_finds(shared, tmp_path):
    file = tmp_path / "figures.json"
    cells = shared / "data" / "validation" / "zheng68k_subset_pbmc.h5ad"
    options = ["--cells", str(cells), "--number", "3000", "--queries", "10", "--json", str(file)]
    run_python("eval/benchmarks/throughput.py", "index", *options, cwd=REPOSITORY, check=True)
    report = json.loads(file.read_text())
    assert report["embeddings"] == 3000
    assert 0.95 <= report["recall"] <= 1
    assert report["index"]["building"] > report["exact"]["building"]


@pytest.mark.e2e
@pytest.mark.heavy
def test_a_report_is_opened(chromium, shared, tmp_path):
    file, page = tmp_path / "figures.json", tmp_path / "report.html"
    cells = shared / "data" / "validation" / "zheng68k_subset_pbmc.h5ad"
    options = ["--cells", str(cells), "--number", "400", "--rounds", "1", "--keep", str(page), "--json", str(file)]
    run_python("eval/benchmarks/throughput.py", "report", *options, cwd=REPOSITORY, check=True)
    report = json.loads(file.read_text())
    assert report["cells"] == 400
    assert report["report_mb"] == pytest.approx(page.stat().st_size / 1e6)
    assert 0 < report["opened_in_seconds"][0] < report["annotated_in_seconds"]
    assert "sample 8" in page.read_text()


@pytest.mark.e2e
@pytest.mark.heavy
def test_the_rate_of_training(tmp_path):
    file = tmp_path / "figures.json"
    options = ["--quick", "--geometry", "mini", "--json", str(file)]
    run = run_python("eval/benchmarks/throughput.py", "train", *options, cwd=REPOSITORY, check=True)
    assert "days" in run.stdout
    report = json.loads(file.read_text())
    (mini,) = report["geometries"].values()
    for figures in mini["stages"].values():
        assert 0 < figures["utilisation"] < 1.5
        assert figures["genes_per_second"] == pytest.approx(64 * figures["cells_per_second"])
    rates = [figures["cells_per_second"] for figures in mini["stages"].values()]
    assert mini["days_for_the_papers_cells"] == pytest.approx(sum(27.5e6 / rate for rate in rates) / 86400)


def test_attention_is_counted_on_a_cpu_too():
    workload = training_rate.Workload("mini", 2, 200, 2, 8)
    model = workload.model("stage 1").eval()
    batch = workload.batch(model.config, torch.device("cpu"), seed=0)
    labels = batch["cell_input_ids"].where(torch.arange(200) % 7 == 1, -100)
    batch |= {"masked_input_ids": batch["cell_input_ids"], "masked_gene_targets": labels}
    counts = []
    for attention in ("eager", "sdpa"):
        model.set_attn_implementation(attention)
        counts.append(training_rate.operations_of_a_step(model, batch))
    assert counts[0] < counts[1] < 1.05 * counts[0], "sdpa's way back computes the scores again"


@pytest.mark.e2e
@pytest.mark.heavy
def test_the_memory_of_a_corpus(tmp_path):
    file = tmp_path / "figures.json"
    options = ["--cells", "40", "--cells", "80", "--genes", "200", "--chunk-cells", "16", "--json", str(file)]
    run_python("eval/benchmarks/throughput.py", "corpus", *options, cwd=REPOSITORY, check=True)
    report = json.loads(file.read_text())
    assert list(report["peak_gb"]) == list(report["seconds"]) == ["40", "80"]
    assert all(peak > 0 for peak in report["peak_gb"].values())
    assert report["command"].startswith("python eval/benchmarks/throughput.py corpus --cells 40")

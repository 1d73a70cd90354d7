# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Integration, disease and pathways: their training and test cells, and effects planted in the data."""

import hashlib

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scib_metrics as scib
import scipy.sparse as sp
from scipy.spatial.distance import pdist

from modeling_langcell import InputError, LangCellAnnotator
from modeling_langcell.eval.run import find_task, planned_runs
from modeling_langcell.eval.studies import Study
from modeling_langcell.eval.task import LANGCELL, RANDOM, EvaluationContext, Run
from modeling_langcell.eval.tasks import disease, integration, pathways
from modeling_langcell.io.example import load_example
from tests.support.paths import REPOSITORY
from tests.support.tiny import GENES, TYPES

MINI = str(REPOSITORY / "hub_configs" / "langcell-mini")
#: Genes of the example that are not specific to any type of its cells.
PLANTED = ["SSU72", "SRM", "HP1BP3", "EIF3I", "SFPQ", "PSMB2"]
CLASS_II = ["HLA-DRA", "HLA-DRB1", "HLA-DPA1", "HLA-DPB1", "HLA-DQA1", "CD74"]
#: Types of the example that present antigens.
PRESENTING = {"CD14+ Monocyte", "CD19+ B", "CD34+", "Dendritic"}


@pytest.fixture
def context_of(tmp_path):
    """Makes a context whose only study, `mine`, has these cells."""

    def make(model, adata, **fields):
        adata.write_h5ad(tmp_path / "mine.h5ad")
        digest = hashlib.sha256((tmp_path / "mine.h5ad").read_bytes()).hexdigest()
        facts = {"what": "", "in_training": False, "licence": "", "citation": "", "sha256": digest}
        return EvaluationContext(
            str(model), None, tmp_path, {"mine": Study("mine", path="mine.h5ad", **facts | fields)}
        )

    return make


def run_of(context, method=LANGCELL, seed=0, **setting):
    return Run(context, context.study("mine"), method, setting, seed)


def ask(task, context, method, **setting):
    return find_task(task.name).measure(run_of(context, method, **setting))


@pytest.fixture
def seen(monkeypatch):
    """Collects the names of cells that models learn from and of cells that they annotate."""
    names = {"trained": set(), "tested": set()}

    def watch(owner, attribute, what, place):
        original = getattr(owner, attribute)

        def watched(*args, **options):
            names[what] |= set(args[place].obs_names)
            return original(*args, **options)

        monkeypatch.setattr(owner, attribute, watched)

    for module in (disease, pathways):
        watch(module, "adapt", "trained", 1)
    watch(LangCellAnnotator, "annotate", "tested", 1)
    return names


def tiny_cells(number=60):
    """Returns cells of three types, each of which expresses ten genes tenfold; both batches have all types."""
    rng = np.random.default_rng(0)
    rates = np.full((number, len(GENES)), 0.5)
    for row in range(number):
        rates[row, 10 * (row % 3) : 10 * (row % 3) + 10] *= 10
    obs = pd.DataFrame(index=[f"cell{row}" for row in range(number)])
    obs["cell_type"] = [[*TYPES.values()][row % 3] for row in range(number)]
    obs["donor"] = np.where(rng.random(number) < 0.5, "one", "other")
    obs["disease"] = ["colorectal cancer" if row % 3 else "healthy" for row in range(number)]
    obs["disease_ontology_term_id"] = ["MONDO:0005575" if row % 3 else "PATO:0000461" for row in range(number)]
    return ad.AnnData(sp.csr_matrix(rng.poisson(rates).astype(np.float32)), obs=obs, var=pd.DataFrame(index=GENES))


def test_the_untrained_checkpoint_is_the_untrained_model(context_of):
    cells = load_example()[:5].copy()
    context = context_of(MINI, cells)
    loaded = LangCellAnnotator.from_pretrained(context.untrained_folder(3))
    untrained, trained, embeds = (
        annotator.embed(cells, use_raw=True, counts="log1p").obsm["X_langcell"].copy()
        for annotator in (context.untrained(3), context.annotator, loaded)
    )
    np.testing.assert_allclose(embeds, untrained, atol=1e-6)
    assert np.abs(embeds - trained).max() > 0.1


class TestIntegration:
    @pytest.fixture(autouse=True)
    def quick_kbet(self, monkeypatch):
        """Computes kBET over all cells at once: kBET over labels compiles for half a minute."""
        monkeypatch.setattr(scib, "kbet_per_label", lambda near, batches, labels: scib.kbet(near, batches)[0])

    @pytest.mark.long
    def test_types_apart_and_batches_together_score_best(self):
        rng = np.random.default_rng(0)
        labels, batches = rng.integers(0, 2, 200).astype(str), rng.integers(0, 2, 200).astype(str)
        perfect = 5 * np.eye(8)[labels.astype(int)] + rng.normal(size=(200, 8))
        best = integration.integration_scores(perfect, labels, batches)
        batched = integration.integration_scores(
            perfect + 9 * (batches == "1")[:, None] * np.eye(8)[7], labels, batches
        )
        shuffled = integration.integration_scores(rng.permutation(perfect), labels, batches)
        assert best["total"] > max(batched["total"], shuffled["total"]) + 0.1
        assert best["bio_conservation"] > shuffled["bio_conservation"] + 0.3
        assert best["batch_correction"] > batched["batch_correction"] + 0.3
        assert best["nmi"] > 0.95
        assert batched["kbet"] == 0
        assert best["total"] == pytest.approx(0.6 * best["bio_conservation"] + 0.4 * best["batch_correction"])

    def test_components_use_genes_that_all_batches_have(self, cells, tiny_checkpoint, context_of):
        cells.X = cells.X.toarray() + 1
        batches = np.array(["one", "other"] * 6)
        cells.X[batches == "one", 3] = 0
        cells.X[batches == "other", 3] = 500
        cells.obs["cell_type"] = "B cell"
        context = context_of(tiny_checkpoint, cells)
        found = integration.principal_components(run_of(context, "pca"), cells, batches)
        shared = np.delete(cells.X, 3, axis=1)
        expected = np.log1p(1e4 * shared / shared.sum(axis=1, keepdims=True))
        np.testing.assert_allclose(pdist(found), pdist(expected), rtol=1e-5)

    @pytest.mark.long
    def test_measured(self, tiny_checkpoint, context_of, monkeypatch):
        monkeypatch.setattr(integration, "umap_coordinates", lambda embeds, **columns: columns)
        monkeypatch.setattr(integration, "MOST_CELLS", 50)
        context = context_of(tiny_checkpoint, tiny_cells(), batch_key="donor")
        found = ask(integration.TASK, context, "pca")
        assert set(found.scores) == set(integration.TASK.metrics)
        assert np.isfinite([*found.scores.values()]).all()
        assert found.scores["nmi"] > 0.9
        drawn = found.drawings["umap"]
        assert (set(drawn["label"]), set(drawn["batch"])) == (set(TYPES.values()), {"one", "other"})
        assert len(drawn["label"]) == 50
        scored = {}
        for method in (LANGCELL, RANDOM):
            monkeypatch.setattr(
                integration, "integration_scores", lambda embeds, *_, of=method: scored.update({of: embeds})
            )
            ask(integration.TASK, context, method)
            rows = np.sort(np.random.default_rng(0).permutation(60)[:50])
            own = (
                Run(context, context.study("mine"), method, {}, 0)
                .annotator.embed(context.cells(context.study("mine"))[rows].copy())
                .obsm["X_langcell"]
            )
            np.testing.assert_allclose(scored[method], own, atol=1e-5)

    @pytest.mark.parametrize(
        ("batch_key", "message"),
        [(None, "mine has no batches to integrate"), ("cell_type", "No label of mine is in two batches")],
    )
    def test_a_study_without_batches_is_named(self, tiny_checkpoint, context_of, batch_key, message):
        context = context_of(tiny_checkpoint, tiny_cells(), batch_key=batch_key)
        with pytest.raises(InputError, match=message):
            ask(integration.TASK, context, LANGCELL)


class TestDisease:
    @pytest.mark.long
    def test_all_cells_but_the_shots_are_tested(self, tiny_checkpoint, context_of, seen):
        cells = tiny_cells()
        context = context_of(tiny_checkpoint, cells, label_key="disease")
        shots = set(cells.obs_names[disease.split(run_of(context))[0]])
        assert len(shots) == 18
        assert shots != set(cells.obs_names[disease.split(run_of(context, seed=1))[0]])
        for study, method, setting, seed in planned_runs(
            disease.TASK, [context.study("mine")], disease.TASK.methods, 1
        ):
            seen["trained"], seen["tested"] = set(), set()
            found = disease.measure(Run(context, study, method, setting, seed))
            assert np.sum(found.drawings["confusion"]["cells"]) == 42
            if method not in disease.LEARNERS:
                assert seen["tested"] == set(cells.obs_names) - shots
                assert seen["trained"] == (shots if setting["shots"] else set())
        assert ask(disease.TASK, context, "logistic_regression", shots=9).scores["macro_f1"] > 0.9

    def test_descriptions_of_labels(self, tiny_checkpoint, context_of):
        cells = tiny_cells()
        context = context_of(tiny_checkpoint, cells, label_key="disease")
        said = disease.describe_label(run_of(context), "colorectal cancer")
        assert said.startswith("disease: colorectal cancer. A primary or metastatic malignant neoplasm that affects")
        cells.obs.loc["cell1", "disease_ontology_term_id"] = "PATO:0000461"
        context = context_of(tiny_checkpoint, cells, label_key="disease")
        with pytest.raises(InputError, match=r"mine: the label 'colorectal cancer' needs one ontology term"):
            ask(disease.TASK, context, LANGCELL, shots=0)

    @pytest.mark.long
    def test_prototypes_of_a_few_tumour_cells_beat_random_weights(self, shared):
        context = EvaluationContext(MINI, None, shared / "data")
        study = context.study("nsclc_zilionis_scgate_tissue")
        found = [
            disease.measure(Run(context, study, method, {"shots": 9}, 0)).scores["balanced_accuracy"]
            for method in (disease.PROTOTYPES, RANDOM)
        ]
        assert found[0] > max(0.7, found[1] + 0.1)

    def test_all_labels_of_the_registered_studies_are_described(self, shared):
        context = EvaluationContext(MINI, None, shared / "data")
        for study in map(context.study, disease.TASK.studies):
            run = Run(context, study, LANGCELL, {}, 0)
            texts = {label: disease.describe_label(run, label) for label in set(run.truth)}
            assert len(set(texts.values())) == 2
            assert all(text.startswith(("disease: ", "tissue: ")) for text in texts.values())


class TestPathways:
    @pytest.fixture
    def planted(self):
        """The example's 700 cells, 100 of which express six genes highly, and the names of these 100 cells."""
        cells = load_example().raw.to_adata()
        cells.obs["cell_type"] = "B cell"
        chosen = np.sort(np.random.default_rng(0).permutation(700)[:100])
        values = cells.X.toarray()
        values[np.ix_(chosen, cells.var_names.get_indexer(PLANTED))] += 3
        cells.X = sp.csr_matrix(values)
        return cells, cells.obs_names[chosen]

    @pytest.fixture
    def context(self, planted, context_of, tmp_path):
        context = context_of(MINI, planted[0], read={"counts": "log1p"})
        context.gene_sets = tmp_path / "sets.gmt"
        sets = {"planted": PLANTED, "class II": CLASS_II, "few": [*PLANTED[:4], "none"]}
        context.gene_sets.write_text("\n".join("\t".join([name, "", *genes]) for name, genes in sets.items()))
        return context

    def test_targets_are_the_cells_with_most_of_a_set(self, planted, context):
        targets = pathways.find_targets(run_of(context))
        assert list(targets.columns) == ["planted", "class II"]
        assert targets.loc[planted[1], "planted"].all()
        assert targets.sum().between(100, 175).all()
        types = load_example().obs["bulk_labels"]
        assert types[targets["class II"].to_numpy()].isin(PRESENTING).mean() > 0.95

    @pytest.mark.long
    def test_training_cells_are_never_tested(self, planted, context, seen, monkeypatch):
        monkeypatch.setattr(pathways, "EPOCHS", 2)
        found = {}
        for method in pathways.TASK.methods:
            seen["trained"], seen["tested"] = set(), set()
            found[method] = ask(pathways.TASK, context, method)
            assert set(found[method].scores) == set(pathways.TASK.metrics)
            if method in pathways.ADAPTATION:
                assert (len(seen["trained"]), len(seen["tested"])) == (210, 490)
                assert not seen["trained"] & seen["tested"]
        assert found["majority"].scores["macro_auroc"] == 0.5
        assert found["logistic_regression"].per_class["planted"]["auroc"] > 0.9
        assert found[LANGCELL].per_class["class II"]["auroc"] > found[RANDOM].per_class["class II"]["auroc"]
        assert found[LANGCELL].per_class["class II"]["auroc"] > 0.9

    def test_scores_against_loops(self):
        rng = np.random.default_rng(0)
        has, found = rng.random((40, 2)) < 0.4, rng.random((40, 2)).round(1)
        result = pathways.score_gene_sets(has, found, ["first", "second"])
        for i, name in enumerate(("first", "second")):
            yes, no = found[has[:, i], i], found[~has[:, i], i]
            above = np.mean([(one > other) + (one == other) / 2 for one in yes for other in no])
            right = sum(one >= 0.5 for one in yes)
            f1 = 2 * right / (len(yes) + sum(one >= 0.5 for one in found[:, i]))
            assert result.per_class[name]["auroc"] == pytest.approx(above)
            assert result.per_class[name]["f1"] == pytest.approx(f1)
        means = np.mean([[one[score] for score in ("auroc", "f1")] for one in result.per_class.values()], axis=0)
        assert [result.scores["macro_auroc"], result.scores["macro_f1"]] == pytest.approx(means.tolist())

    def test_too_few_sets_are_refused(self, context):
        context.gene_sets.write_text("planted\t\t" + "\t".join(PLANTED))
        with pytest.raises(InputError, match=r"Fewer than two sets of \S+sets\.gmt have 5 genes and 10 cells in mine"):
            ask(pathways.TASK, context, LANGCELL)

    def test_the_committed_sets(self):
        sets = pathways.read_gene_sets(pathways.EXAMPLE)
        assert 6 <= len(sets) <= 8
        assert all(10 <= len(set(genes)) == len(genes) <= 25 for genes in sets.values())
        extractor = LangCellAnnotator.from_pretrained(MINI).processor.feature_extractor
        for name, genes in sets.items():
            assert extractor.match_genes(genes).fraction > 0.85, name

    @pytest.mark.parametrize("line", ["b", "b\tdescription", "b\tdescription\t", "\tx\tCD3E", "a\tx\tCD3E"])
    def test_a_malformed_line_is_named(self, line, tmp_path):
        (tmp_path / "own.gmt").write_text(f"a\tdescription\tCD3E\tCD3D\n\n{line}\n")
        with pytest.raises(InputError, match=r"own\.gmt, line 3: "):
            pathways.read_gene_sets(tmp_path / "own.gmt")
        with pytest.raises(InputError, match=r"none\.gmt cannot be read"):
            pathways.read_gene_sets(tmp_path / "none.gmt")

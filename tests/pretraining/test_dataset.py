# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Batches of a step: their cells, genes and texts, which depend on the step alone."""

import anndata as ad
import numpy as np
import pytest
import torch

from modeling_langcell import InputError
from modeling_langcell.corpus.build import CorpusSettings, make_corpus
from modeling_langcell.corpus.corpus import Corpus
from modeling_langcell.corpus.sources import find_sources
from modeling_langcell.model.objectives import IGNORED
from modeling_langcell.pretraining.config import PretrainingConfig
from modeling_langcell.pretraining.dataset import FrozenTextEncoder, PretrainingBatches
from modeling_langcell.pretraining.initialization import initialize_model
from tests.support.tiny import GENES, TYPES, initialized

CLS = len(GENES) + 2


@pytest.fixture
def make(settings):
    """Returns a function that creates batches of the tiny studies; keywords change the run's settings."""

    def batches(process=0, processes=1, **overrides):
        config = PretrainingConfig(**settings | overrides)
        corpus = Corpus(config.corpus)
        model, processor = initialize_model(config, corpus.gene_vocabulary, weights_follow=True)
        return PretrainingBatches(corpus, processor, model, config, process, processes)

    return batches


def no_texts(settings):
    return {"model": settings["model"] | {"cell_text_weight": 0, "matching_weight": 0}}


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        same = torch.equal(value, other[name]) if isinstance(value, torch.Tensor) else value == other[name]
        assert same, name


def rows_of(batch, *names):
    """Returns each cell's ids without padding, under the given names."""
    real = batch["cell_attention_mask"].bool()
    return [[batch[name][row][real[row]].tolist() for name in names] for row in range(len(real))]


def test_cells_of_unknown_type_are_left_out_where_texts_are_needed(make, settings):
    batches = make()
    assert set(batches.corpus.facts["cell_type"].iloc[batches.rows]) == set(TYPES)
    all_cells = make(**no_texts(settings))
    assert len(batches.rows) < len(all_cells.rows) == len(batches.corpus)
    assert "input_ids" not in all_cells[0]


def test_batches_have_only_what_the_objectives_need(make, settings):
    batch = make(model=settings["model"] | {"masked_gene_weight": 0})[0]
    assert "masked_input_ids" not in batch
    assert {"masked_input_ids", "masked_gene_targets", "text_index", "negative_draws"} <= make()[0].keys()


def test_a_step_depends_on_its_number_and_the_seed_alone(make):
    batches = make()
    for step in (3, 0, 7):
        assert_same(batches[step], make()[step])
    assert not torch.equal(batches[3]["text_index"], make(seed=1)[3]["text_index"])


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_share_the_batch_of_one(make, processes):
    """Each cell is in one process and has the same genes there; texts and draws are the same in all."""
    settings = {"gene_dropout": 0.5, "panel_share": 0.5}
    alone = make(**settings)
    parts = [make(process, processes, **settings) for process in range(processes)]
    names = ("cell_input_ids", "masked_input_ids", "masked_gene_targets")
    for step in range(5):
        whole, shares = alone[step], [part[step] for part in parts]
        together = [cell for share in shares for cell in rows_of(share, *names)]
        order = [together.index(cell) for cell in rows_of(whole, *names)]
        assert sorted(order) == list(range(len(together)))
        for share in shares:
            assert share["texts"] == whole["texts"]
            assert torch.equal(share["text_index"][order], whole["text_index"])
            assert torch.equal(share["ignored_pairs"][order], whole["ignored_pairs"])
            assert torch.equal(share["negative_draws"], whole["negative_draws"])


def test_parts_have_cells_of_similar_length_and_equal_work(make):
    parts = [make(process, 2, gene_dropout=0.8, batch_tokens=1500) for process in range(2)]
    genes, longest = [], []
    for step in range(10):
        masks = [part[step]["cell_attention_mask"] for part in parts]
        genes.append([int(mask.sum()) for mask in masks])
        longest.append(masks[0].shape[1] - masks[1].sum(dim=1).min())
        assert masks[0].sum(dim=1).max() <= masks[1].sum(dim=1).min()
    few, many = np.mean(genes, axis=0)
    assert few == pytest.approx(many, rel=0.1)


def test_a_small_batch_has_fewer_length_groups(make):
    assert make(length_groups=4, batch_tokens=400)[0]["length_groups"] == 4
    parts = [make(process, 2, length_groups=4, batch_tokens=60)[0] for process in range(2)]
    assert (
        parts[0]["length_groups"] == parts[1]["length_groups"] == min(len(part["cell_input_ids"]) for part in parts) < 4
    )


def test_fewer_cells_than_processes_are_refused(make):
    with pytest.raises(InputError, match="fewer than there are processes"):
        make(0, 5, batch_tokens=40)[0]


def test_genes_keep_their_order_after_cls(make):
    batches = make(gene_dropout=0.8, max_genes=20)
    whole = {tuple(cell.tolist()) for cell in batches.corpus.token_ids(batches.rows)}
    lengths = []
    for step in range(3):
        for (shown,) in rows_of(batches[step], "cell_input_ids"):
            assert shown[0] == CLS
            assert len(shown) <= 20
            lengths.append(len(shown))

            def comes_from(cell, shown=shown):
                position = iter(cell)
                return all(gene in position for gene in shown)

            assert any(comes_from(cell) for cell in whole)
    assert min(lengths) < 10


def test_a_profile_gives_a_new_cell_at_every_step(make, tiny_studies, tmp_path):
    """As many of its genes are dropped as of other cells."""
    study = ad.read_h5ad(tiny_studies / "train" / "study0.h5ad")
    study.X = study.X * 1000
    study.obs["profile"] = np.arange(study.n_obs) < 20
    study.write_h5ad(tmp_path / "atlas.h5ad")
    corpus = make_corpus(
        find_sources([str(tmp_path / "atlas.h5ad")]),
        tmp_path / "corpus",
        CorpusSettings(str(tiny_studies / "gene_info.gz"), min_cells=1, max_genes=30),
    )
    batches = make(corpus=str(corpus.folder), gene_dropout=0.0, panel_share=0.0, max_genes=64, batch_tokens=10**6)
    profiles = corpus.facts["profile"].to_numpy()[batches.rows]
    shown = [{tuple(cell) for (cell,) in rows_of(batches[step], "cell_input_ids")} for step in (0, 1, 0)]
    assert shown[0] == shown[2]
    assert len(shown[0] & shown[1]) == (~profiles).sum() < len(profiles)
    assert max(map(len, shown[0])) > 30, "a drawn cell may have more genes than the corpus keeps of a cell"
    few = make(corpus=str(corpus.folder), gene_dropout=0.8, panel_share=0.0, max_genes=64, batch_tokens=10**6)
    lengths = np.array([[len(cell) for (cell,) in rows_of(few[step], "cell_input_ids")] for step in range(20)])
    assert 0.5 < lengths.mean() / np.mean([len(cell) for cell in shown[0]]) < 0.75


def test_a_cell_on_another_panel_has_only_that_panels_genes(make):
    batches = make(panel_share=1.0, gene_dropout=0.0, max_genes=64)
    half = np.arange(2, 2 + len(GENES) // 2)
    batches.measured = np.isin(np.arange(len(GENES) + 3), half)[None]
    shown = [set(cell[1:]) for (cell,) in rows_of(batches[0], "cell_input_ids")]
    assert not all(genes <= set(half.tolist()) for genes in shown), "too few genes left: the cell keeps all"
    batches.min_panel_genes = 1
    shown = [set(cell[1:]) for (cell,) in rows_of(batches[0], "cell_input_ids")]
    assert all(genes <= set(half.tolist()) for genes in shown)
    assert any(shown)


def test_noise_changes_ranks_and_keeps_genes(make):
    """The more noise, the farther genes move; those near the top stay near the top."""
    settings = {"gene_dropout": 0.0, "panel_share": 0.0, "max_genes": 64, "batch_tokens": 10**6}
    whole = {frozenset(cell): cell for (cell,) in rows_of(make(**settings)[0], "cell_input_ids")}
    moved = []
    for noise in (0.0, 0.3, 3.0):
        shown = [cell for (cell,) in rows_of(make(**settings, rank_noise=noise)[0], "cell_input_ids")]
        assert all(cell[0] == CLS and frozenset(cell) in whole for cell in shown)
        moves = [abs(cell.index(gene) - whole[frozenset(cell)].index(gene)) for cell in shown for gene in cell]
        moved.append(np.mean(moves))
    assert moved[0] == 0
    assert 0 < 2 * moved[1] < moved[2]


def test_masked_genes_are_labelled(make):
    batch = make()[0]
    real = batch["cell_attention_mask"].bool()
    ids, masked, labels = (batch[name] for name in ("cell_input_ids", "masked_input_ids", "masked_gene_targets"))
    asked = labels != IGNORED
    assert 0.05 < asked[real].float().mean() < 0.25
    assert not asked[~real].any()
    assert torch.equal(labels[asked], ids[asked])
    assert torch.equal(masked[~asked], ids[~asked])


def test_a_cells_own_text_is_never_ignored(make):
    batches = make(sibling_texts=3)
    for step in range(10):
        batch = batches[step]
        cells, texts = batch["ignored_pairs"].shape
        assert cells == len(batch["cell_input_ids"]) == len(batch["text_index"])
        assert texts == len(batch["input_ids"]) == len(batch["texts"])
        assert not batch["ignored_pairs"][torch.arange(cells), batch["text_index"]].any()


def test_a_frozen_encoder_reads_each_text_once(settings):
    model, processor = initialized(settings)
    frozen = FrozenTextEncoder(model.eval(), processor, max_tokens=16)
    read = []
    frozen.text_model.register_forward_pre_hook(
        lambda _, args, kwargs: read.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    pooled = frozen(["b cell", "t cell"])
    again = frozen(["t cell", "monocyte", "b cell"])
    assert read == [1, 1, 1]
    assert torch.equal(again[[2, 0]], pooled)
    assert torch.equal(FrozenTextEncoder(model, processor, max_tokens=16)(["t cell"])[0], pooled[1]), (
        "whatever was read before"
    )
    batch = processor(text=["monocyte"], return_tensors="pt")
    torch.testing.assert_close(again[1], model.text_model(**batch).pooler_output[0], atol=1e-5, rtol=0)

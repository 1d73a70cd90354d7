# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Sampling the cells of a step, and splitting them over processes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeling_langcell.pretraining.sampler import CellSampler, split_by_length


def sampler(balance=0.0, batch_tokens=1000, seed=0):
    """Three groups of 900, 90 and 10 cells, of 10 to 109 genes."""
    groups = np.repeat([0, 1, 2], [900, 90, 10])
    lengths = np.arange(1000) % 100 + 10
    return CellSampler(lengths, [groups], balance=balance, batch_tokens=batch_tokens, seed=seed)


def test_steps_have_distinct_cells_within_the_budget():
    drawing = sampler()
    for step in range(50):
        cells = drawing.cells(step)
        assert len(set(cells)) == len(cells)
        assert 1000 - 110 < drawing.lengths[cells].sum() <= 1000


def test_at_least_two_cells():
    assert len(sampler(batch_tokens=1).cells(0)) == 2


def test_a_budget_larger_than_the_corpus_takes_all_cells():
    assert sorted(sampler(batch_tokens=10**6).cells(0)) == list(range(1000))


def test_steps_are_different_and_reproducible():
    drawing, twin = sampler(), sampler()
    assert np.array_equal(drawing.cells(5), twin.cells(5))
    assert not np.array_equal(drawing.cells(5), drawing.cells(6))
    assert not np.array_equal(drawing.cells(5), sampler(seed=1).cells(5))


@pytest.mark.parametrize("balance", [0.0, 0.5, 1.0])
def test_groups_are_drawn_in_proportion_to_a_power_of_their_size(balance):
    drawing = sampler(balance, batch_tokens=120)
    drawn = np.bincount(np.concatenate([np.digitize(drawing.cells(step)[:1], [900, 990]) for step in range(3000)]))
    expected = np.array([900, 90, 10]) ** balance
    expected = 3000 * expected / expected.sum()
    assert (np.abs(drawn - expected) < 5 * np.sqrt(expected) + 1).all()


def test_groups_of_several_facts():
    studies, types = np.array([0, 0, 0, 1]), np.array([0, 1, 1, 1])
    drawing = CellSampler(np.ones(4, int), [studies, types], balance=0, batch_tokens=2, seed=0)
    assert sorted(drawing.sizes) == [1, 1, 2]


@given(st.lists(st.integers(1, 2048), min_size=8, max_size=60), st.integers(1, 8))
def test_every_cell_is_in_one_part_and_every_part_has_a_cell(lengths, processes):
    lengths = np.array(lengths)
    parts = split_by_length(lengths, processes)
    assert sorted(np.concatenate(parts)) == list(range(len(lengths)))
    assert all(len(share) for share in parts)
    assert (np.diff(lengths[np.concatenate(parts)]) >= 0).all()


def test_parts_are_of_equal_work():
    lengths = np.random.default_rng(0).integers(50, 2048, 400)
    work = [lengths[share].sum() for share in split_by_length(lengths, 8)]
    assert max(work) - min(work) < 2 * 2048

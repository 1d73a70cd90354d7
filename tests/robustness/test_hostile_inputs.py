# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""
Random and hostile inputs: they give a valid result or one message, leave nothing half-written, and run no code.
"""

import json
import os
import pickle
import pickletools
import shutil
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import example, given
from hypothesis import strategies as st
from typer.testing import CliRunner

from modeling_langcell import InputError, LangCellFeatureExtractor
from modeling_langcell.checkpoint.loading import load_checkpoint
from modeling_langcell.cli.main import app
from modeling_langcell.conversion.pickles import UnsafePickle, read_plain_pickle
from modeling_langcell.conversion.published import read_gene_vocabulary
from tests.support.tiny import GENES, SYMBOLS

# ---------------------------------------------------------------------- counts to ranks

DTYPES = "bool int8 uint8 int32 int64 uint64 float16 float32 float64 complex64 U3 O".split()
FORMS = (np.asarray, np.asfortranarray, sp.csr_matrix, sp.csc_matrix, sp.coo_matrix, sp.csr_array)
NUMBERS = st.one_of(st.integers(0, 9), st.integers(-3, 2**62), st.floats(), st.floats(0, 1e-300), st.just(0))


@st.composite
def odd_matrices(draw):
    """Draws cells of any values in any dtype and form, and genes of any names, some of them the vocabulary's."""
    n_cells, n_genes = draw(st.integers(0, 4)), draw(st.integers(0, 6))
    simple = draw(st.booleans())
    numbers = st.integers(0, 9) if simple else NUMBERS
    row = st.lists(numbers, min_size=n_genes, max_size=n_genes)
    values = draw(st.lists(row, min_size=n_cells, max_size=n_cells))
    with np.errstate(all="ignore"):
        array = np.array(values, dtype=object).reshape(n_cells, n_genes)
        try:
            array = array.astype(draw(st.sampled_from(DTYPES)))
            matrix = draw(st.sampled_from(FORMS))(array)
        except (
            OverflowError,
            ValueError,
            TypeError,
        ):  # No such number in this dtype; none of these in a sparse matrix.
            matrix = array
    names = st.one_of(st.sampled_from([*GENES, *SYMBOLS, "ALIAS3", "", "ENSG00000000001.7"]), st.text(max_size=5))
    genes = draw(st.lists(names, min_size=n_genes, max_size=n_genes))
    return matrix, genes


def assert_kept(ranked, n_cells: int, extractor: LangCellFeatureExtractor, max_length: int) -> None:
    """Asserts what holds for all ranked cells."""
    assert len(ranked) == n_cells
    assert ((ranked.matched_counts >= 0) & (ranked.matched_counts <= 1 + 1e-6)).all()
    for cell in range(n_cells):
        cls, *ids = ranked[cell].tolist()
        assert cls == extractor.cls_token_id
        assert len(ids) == len(set(ids)) < max_length
        assert all(2 <= token_id < extractor.cls_token_id for token_id in ids)


@given(
    odd_matrices(),
    st.sampled_from(["raw", "normalized", "log1p"]),
    st.sampled_from(["error", "mark"]),
    st.integers(0, 6),
    st.integers(1, 5),
)
def test_any_matrix_is_ranked_or_refused(tiny_processor, drawn, counts, empty_cells, max_length, chunk_size):
    matrix, genes = drawn
    extractor = tiny_processor.feature_extractor
    options = {"counts": counts, "empty_cells": empty_cells, "max_length": max_length, "chunk_size": chunk_size}
    try:
        with np.errstate(over="ignore"):
            ranked = extractor.rank(matrix, gene_ids=genes, **options)
    except InputError:
        return
    assert_kept(ranked, matrix.shape[0], extractor, max_length)
    dense, ids_of = (
        np.asarray(matrix.todense() if sp.issparse(matrix) else matrix),
        extractor.match_genes(genes).token_ids,
    )
    for cell, row in enumerate(dense):
        assert set(ranked[cell][1:]) <= set(ids_of[row != 0]), "a gene that was not counted"


@pytest.mark.parametrize("counts", ["raw", "normalized"])
def test_values_at_the_limits_of_floats(tiny_processor, counts):
    extractor, tiny = tiny_processor.feature_extractor, 1.0 if counts == "raw" else 5e-324
    ranked = extractor.rank(np.array([[tiny, 1e38, 1e38]]), gene_ids=GENES[:3], counts=counts)
    assert ranked[0].tolist() == [extractor.cls_token_id, 3, 4, 2]
    assert ranked.matched_counts.tolist() == [1]
    with pytest.raises(InputError, match=r"larger than any count \(1.7e\+308 in cell 0\)"):
        extractor.rank(np.array([[1.7e308, 1.7e308]]), gene_ids=GENES[:2], counts=counts)


@st.composite
def counted(draw):
    """Draws whole counts of some genes, and an order of these genes."""
    n_genes = draw(st.integers(1, 12))
    row = st.lists(st.integers(0, 50), min_size=n_genes, max_size=n_genes)
    counts = np.array(draw(st.lists(row, min_size=1, max_size=4)), dtype=np.float64)
    genes = draw(st.lists(st.sampled_from(GENES), min_size=n_genes, max_size=n_genes))
    return counts, genes, draw(st.permutations(range(n_genes)))


@given(counted(), st.integers(-40, 60))
def test_order_and_scale_of_genes_do_not_matter(tiny_processor, drawn, power):
    counts, genes, order = drawn
    extractor = tiny_processor.feature_extractor
    medians = dict(enumerate(extractor.gene_vocabulary["medians"], start=2))

    def ranked(matrix, names, kind="raw"):
        found = extractor.rank(matrix, gene_ids=names, empty_cells="mark", counts=kind)
        return [found[cell].tolist() for cell in range(len(found))]

    expected = ranked(counts, genes)
    assert ranked(counts[:, order], [genes[place] for place in order]) == expected
    assert ranked(sp.csc_matrix(counts), genes) == expected
    assert ranked(counts * 2.0**power, genes, "normalized") == expected
    for row, (_, *ids) in zip(counts, expected, strict=True):
        sums = dict.fromkeys(ids, 0.0)
        for gene, count in zip(genes, row, strict=True):
            if (token_id := 2 + GENES.index(gene)) in sums:
                sums[token_id] += count
        values = [sums[token_id] / medians[token_id] for token_id in ids]
        assert all(one >= other * (1 - 1e-9) for one, other in pairwise(values))


@given(st.data())
def test_inconsistent_sparse_parts_are_refused(tiny_processor, data):
    counts = sp.csr_matrix(np.arange(1, 41, dtype=np.float32).reshape(2, 20) % 3)
    matrix = data.draw(st.sampled_from([sp.csr_matrix, sp.csc_matrix]))(counts)
    part = getattr(matrix, data.draw(st.sampled_from(["indices", "indptr"])))
    place = data.draw(st.integers(0, len(part) - 1))
    part[place] = data.draw(st.sampled_from([-1, -(2**31), 41, 2**31 - 1]))
    with pytest.raises(InputError, match="the matrix cannot be read: its ind"):
        tiny_processor.feature_extractor.rank(matrix, gene_ids=GENES[:20], empty_cells="mark")


# ---------------------------------------------------------------------- the command


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with a file of cells, where the command runs."""
    folder = tmp_path_factory.mktemp("work")
    counts = np.random.default_rng(0).poisson(2.0, size=(6, len(GENES))).astype(np.float32) + 1
    adata = ad.AnnData(sp.csr_matrix(counts))
    adata.var_names, adata.obs_names = SYMBOLS, [f"cell{number}" for number in range(6)]
    adata.obs["known"] = ["B cell", "natural killer cell"] * 3
    adata.write_h5ad(folder / "cells.h5ad")
    return folder


def call(folder: Path, *arguments: str) -> str:
    """
    Runs the command in a folder, and asserts that it ends with a result, or with one message and no traceback.

    Returns:
        Its stderr, empty if it worked.
    """
    before = {path.name for path in folder.iterdir()}
    there = Path.cwd()
    os.chdir(folder)
    try:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    finally:
        os.chdir(there)
    made = {path.name for path in folder.iterdir()} - before
    for name in made:
        (folder / name).unlink()
    assert result.exit_code in (0, 2), (arguments, result.output, result.exception)
    assert "Traceback" not in result.output
    assert result.exit_code == 0 or not made, (arguments, made)
    if result.exit_code == 2:
        assert result.stderr.count("Error: ") == 1 or "Usage: " in result.stderr, result.stderr
    return result.stderr if result.exit_code else ""


WORDS = st.text(st.characters(exclude_characters="\0"), max_size=8)
OPTIONS = {
    "--alpha": st.one_of(st.floats().map(str), WORDS),
    "--shortlist": st.one_of(st.integers(-2, 9).map(str), st.just("auto"), WORDS),
    "--check-shortlist": st.one_of(st.integers(-2, 99).map(str), WORDS),
    "--error-rate": st.floats().map(str),
    "--batch-tokens": st.one_of(st.integers(-2, 10**9).map(str), WORDS),
    "--counts": st.one_of(st.sampled_from(["raw", "normalized", "log1p"]), WORDS),
    "--empty-cells": st.one_of(st.sampled_from(["error", "mark"]), WORDS),
    "--layer": WORDS,
    "--gene-column": st.one_of(st.just("known"), WORDS),
    "--cluster-key": st.one_of(st.just("known"), WORDS),
    "--reference": st.one_of(st.just("known"), WORDS),
    "--device": st.one_of(st.sampled_from(["cpu", "cpu:1", "meta", "mps", "cuda:7"]), WORDS),
    "--dtype": st.one_of(st.sampled_from(["bfloat16", "float64"]), WORDS),
    "--labels": st.one_of(st.sampled_from(["B cell", "B cell;T cell", "CL:0000236"]), WORDS),
    "--ontology-root": st.one_of(st.just("B-1 B cell"), WORDS),
}


@pytest.mark.long
@given(st.data())
def test_any_options(folder, tiny_checkpoint, data):
    names = data.draw(st.lists(st.sampled_from(sorted(OPTIONS)), max_size=3, unique=True))
    options = {"--labels": "B cell;T cell"} | {name: data.draw(OPTIONS[name]) for name in names}
    words = [f"{name}={value}" for name, value in options.items()]
    call(folder, "annotate", "cells.h5ad", "--model", tiny_checkpoint, "--out", "out.h5ad", *words)


JSON = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.text(st.characters(), max_size=6), st.just("B cell")
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=6), inner, max_size=3)),
    max_leaves=6,
)


@pytest.mark.long
@given(
    st.one_of(st.binary(max_size=40), JSON.map(lambda found: json.dumps(found).encode())),
    st.sampled_from([".json", ".tsv", ".txt"]),
)
@example(b"\xef\xbb\xbfB cell\n", ".txt")
@example(b'{"a\\ud800": "cell type: a"}', ".json")
@example(b'{"a\\u0000": "cell type: a"}', ".json")
@example(b'["B cell", "B cell"]', ".json")
@example(b'{"B cell": "a", "B cell": "b"}', ".json")
@example(b"[" * 100_000, ".json")
@example(b"1" * 10_000, ".json")
def test_any_bytes_as_labels(folder, tiny_checkpoint, content, suffix):
    path = folder / f"types{suffix}"
    path.write_bytes(content)
    try:
        call(folder, "describe", "--labels", path.name, "--model", tiny_checkpoint)
        call(folder, "annotate", "cells.h5ad", "--labels", path.name, "--model", tiny_checkpoint, "--out", "out.h5ad")
    finally:
        path.unlink()


@pytest.mark.long
@given(st.data())
def test_any_damage_to_a_file(folder, tiny_checkpoint, data):
    content = bytearray((folder / "cells.h5ad").read_bytes())
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    else:
        for place in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=4)):
            content[place] ^= data.draw(st.integers(1, 255))
    damaged = folder / "damaged.h5ad"
    damaged.write_bytes(content)
    try:
        command = data.draw(st.sampled_from([("annotate", "--labels", "B cell;T cell"), ("embed",)]))
        call(folder, command[0], damaged.name, *command[1:], "--model", tiny_checkpoint, "--out", "out.h5ad")
    finally:
        damaged.unlink()


# ---------------------------------------------------------------------- pickles


@pytest.fixture
def canary(tmp_path) -> Path:
    """A folder that exists as soon as a pickle has run its code."""
    return tmp_path / "was-run"


def running(path: Path) -> dict[str, bytes]:
    """Returns pickles that make a folder when they are loaded, one for each opcode that imports or calls."""
    name = str(path).encode()
    text = b"X" + len(name).to_bytes(4, "little") + name
    return {
        "GLOBAL and REDUCE": b"\x80\x02cos\nmkdir\n" + text + b"\x85R.",
        "STACK_GLOBAL and REDUCE": b"\x80\x04\x8c\x02os\x8c\x05mkdir\x93" + text + b"\x85R.",
        "INST": b"(" + text + b"ios\nmkdir\n.",
        "OBJ": b"(cos\nmkdir\n" + text + b"o.",
        "in a dict": b"\x80\x02}X\x01\x00\x00\x00acos\nmkdir\n" + text + b"\x85Rs.",
        "as a key": b"\x80\x02}cos\nmkdir\n" + text + b"\x85RK\x01s.",
        "NEWOBJ": b"\x80\x02cpathlib\nPath\n" + text + b"\x85\x81.",
    }


REFUSED = (
    "INST OBJ NEWOBJ NEWOBJ_EX EXT1 EXT2 EXT4 PERSID BINPERSID NEXT_BUFFER READONLY_BUFFER EMPTY_LIST EMPTY_SET".split()
)


def test_no_pickle_is_run(canary):
    sings = {what for what, content in running(canary).items() if _loads(content, canary)}
    assert sings >= {"GLOBAL and REDUCE", "STACK_GLOBAL and REDUCE", "INST", "OBJ", "in a dict"}, "a pickle runs them"
    for what, content in running(canary).items():
        with pytest.raises(UnsafePickle, match=r"global|opcode"):
            read_plain_pickle(content)
        assert not canary.exists(), what


def _loads(content: bytes, canary: Path) -> bool:
    """Returns whether pickle itself runs the code in it."""
    with suppress(TypeError):
        pickle.loads(content)
    ran = canary.exists()
    shutil.rmtree(canary, ignore_errors=True)
    return ran


@pytest.mark.parametrize("name", REFUSED)
def test_opcodes_that_make_more_than_plain_values_are_refused(name):
    opcode = next(opcode for opcode in pickletools.opcodes if opcode.name == name)
    with pytest.raises(UnsafePickle, match=f"the opcode {name}"):
        read_plain_pickle(b"\x80\x05(}" + opcode.code.encode("latin-1") + b"a\nb\n\0\0\0\0")


PLAIN = st.dictionaries(
    st.text(max_size=5),
    st.one_of(st.integers(), st.floats(allow_nan=False), st.text(max_size=5)),
    min_size=1,
    max_size=5,
)


@given(PLAIN, st.integers(0, 5))
def test_plain_dicts_are_read(found, protocol):
    assert read_plain_pickle(pickle.dumps(found, protocol)) == found


@given(st.data())
def test_any_bytes_as_a_pickle_run_nothing(tmp_path, canary, data):
    """The bytes are pieces of random bytes, of pickles that run code, and of good ones."""
    good = [pickle.dumps({"<pad>": 0, "<mask>": 1, "ENSG01": 2}, protocol) for protocol in range(6)]
    whole = data.draw(st.sampled_from([*good, *running(canary).values()]))
    pieces = [whole[: data.draw(st.integers(0, len(whole)))], data.draw(st.binary(max_size=8))]
    pieces.append(data.draw(st.sampled_from([*good, *running(canary).values()])))
    path = tmp_path / "tokens.pkl"
    path.write_bytes(b"".join(data.draw(st.permutations(pieces))))
    with pytest.raises(InputError):
        read_gene_vocabulary(path, path, path)
    assert not canary.exists()


# ---------------------------------------------------------------------- paths that leave a folder


@pytest.mark.parametrize(
    "outside", ["../outside.safetensors", "/outside.safetensors", "a/../../outside.safetensors", ".."]
)
def test_weights_lie_in_their_folder(tiny_checkpoint, tmp_path, outside):
    model = tmp_path / "model"
    shutil.copytree(tiny_checkpoint, model)
    (model / "model.safetensors").rename(tmp_path / "outside.safetensors")
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"temperature": outside}}))
    with pytest.raises(InputError, match="must name only files in this folder"):
        load_checkpoint(model)


@pytest.mark.parametrize("device", ["/dev/full", "/dev/null"])
def test_a_device_is_never_replaced(folder, tiny_checkpoint, device):
    for command in (("search", "cells.h5ad", "B cell"), ("embed", "cells.h5ad")):
        assert "and is not replaced" in call(folder, *command, "--model", tiny_checkpoint, "--out", device)
    assert Path(device).is_char_device()

# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Containers of cells: real cells, written in every format that people have, are the same cells."""

import gzip
import re
import shutil
import subprocess
import sys
import textwrap
import tracemalloc
import zipfile

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.io
import scipy.sparse as sp
import zarr

from modeling_langcell import InputError, LangCellAnnotator, annotate_file
from modeling_langcell.annotation.annotation_run import AnnotationRun
from modeling_langcell.io import open_cells, open_lightly
from modeling_langcell.io.containers import as_h5ad
from tests.support.commands import run_python

LABELS = ["B cell", "T cell", "monocyte"]


@pytest.fixture(scope="module")
def annotator():
    return LangCellAnnotator.from_pretrained("langcell-mini", device="cpu")


@pytest.fixture(scope="module")
def cells(shared):
    adata = ad.read_h5ad(shared / "data/validation/pbmc_kang_ctrl.h5ad")[:60]
    names = adata.var[["symbol", "ensembl_id"]].astype(str)
    has_id = names["ensembl_id"].str.startswith("ENSG")
    names.index = pd.Index(names["ensembl_id"].where(has_id, names["symbol"]).to_numpy())
    return ad.AnnData(adata.X.copy(), obs=adata.obs[["cell_type"]].copy(), var=names)


@pytest.fixture(scope="module")
def expected(annotator, cells):
    return annotator.annotate(cells.copy(), LABELS)


def write_zarr(cells, folder):
    cells.write_zarr(folder / "cells.zarr")
    return folder / "cells.zarr"


def write_counts_of_10x(cells, matrix):
    """Writes genes by cells in columns, which are cells by genes in rows."""
    counts = cells.X.tocsr()
    matrix["data"], matrix["indices"] = counts.data.astype(np.int32), counts.indices
    matrix["indptr"], matrix["shape"] = counts.indptr, np.array(counts.shape[::-1])
    matrix["barcodes"] = cells.obs_names.to_numpy().astype("S")


def write_10x(cells, folder):
    path = folder / "filtered_feature_bc_matrix.h5"
    with h5py.File(path, "w") as file:
        matrix = file.create_group("matrix")
        write_counts_of_10x(cells, matrix)
        features = matrix.create_group("features")
        features["id"], features["name"] = cells.var_names.to_numpy().astype("S"), cells.var["symbol"].to_numpy("S")
        features["feature_type"] = np.array(["Gene Expression"] * cells.n_vars, "S")
        features["genome"] = np.array(["GRCh38"] * cells.n_vars, "S")
    return path


def write_10x_of_two(cells, folder):
    path = folder / "filtered_gene_bc_matrices_h5.h5"
    with h5py.File(path, "w") as file:
        matrix = file.create_group("GRCh38")
        write_counts_of_10x(cells, matrix)
        matrix["genes"] = cells.var_names.to_numpy().astype("S")
        matrix["gene_names"] = cells.var["symbol"].to_numpy("S")
    return path


def write_matrix_market(cells, folder, prefix=""):
    folder = folder / "filtered_feature_bc_matrix"
    folder.mkdir()
    with gzip.open(folder / f"{prefix}matrix.mtx.gz", "wb") as file:
        scipy.io.mmwrite(file, cells.X.T.tocoo().astype(int))
    with gzip.open(folder / f"{prefix}barcodes.tsv.gz", "wt") as file:
        file.write("\n".join(cells.obs_names) + "\n")
    with gzip.open(folder / f"{prefix}features.tsv.gz", "wt") as file:
        names = zip(cells.var_names, cells.var["symbol"], strict=True)
        file.write("".join(f"{ensembl_id}\t{symbol}\tGene Expression\n" for ensembl_id, symbol in names))
    return folder


def write_sample_of_geo(cells, folder):
    return write_matrix_market(cells, folder, "GSM123_blood_") / "GSM123_blood_matrix.mtx.gz"


def write_loom(cells, folder):
    with h5py.File(folder / "cells.loom", "w") as file:
        file["matrix"] = cells.X.toarray().T
        file["row_attrs/Gene"] = cells.var["symbol"].to_numpy("S")
        file["row_attrs/Accession"] = cells.var_names.to_numpy().astype("S")
        file["row_attrs/Loadings"] = np.zeros((cells.n_vars, 2))
        file["col_attrs/CellID"] = cells.obs_names.to_numpy().astype("S")
        file["col_attrs/Batch"] = np.arange(cells.n_obs)
        file.create_dataset("layers/spliced", data=cells.X.toarray().T, chunks=(64, 16))
    return folder / "cells.loom"


def write_mudata(cells, folder):
    with h5py.File(folder / "cells.h5mu", "w") as file:
        ad.io.write_elem(file.create_group("mod"), "rna", cells)
        ad.io.write_elem(file["mod"], "prot", cells[:, :3].copy())
        ad.io.write_elem(file, "obs", cells.obs)
    return folder / "cells.h5mu"


CONTAINERS = (
    *(write_zarr, write_10x, write_10x_of_two, write_matrix_market, write_sample_of_geo, write_loom, write_mudata),
)


@pytest.mark.long
@pytest.mark.parametrize("write", CONTAINERS)
def test_the_same_cells_get_the_same_embeddings(write, annotator, cells, expected, tmp_path):
    path = write(cells, tmp_path)
    out = annotate_file(annotator, path, tmp_path / "annotated.h5ad", LABELS)
    found = ad.read_h5ad(out)
    assert found.obs_names.tolist() == cells.obs_names.tolist()
    assert (found.obs["langcell_cell_type"].astype(str) == expected.obs["langcell_cell_type"].astype(str)).all()
    np.testing.assert_allclose(found.obsm["X_langcell"], expected.obsm["X_langcell"], atol=1e-5)
    np.testing.assert_array_equal(found.X.toarray(), cells.X.toarray())
    assert sorted(one.name for one in tmp_path.iterdir()) == sorted(
        [path.relative_to(tmp_path).parts[0], "annotated.h5ad"]
    )
    in_memory = annotator.embed(open_cells(path))
    np.testing.assert_allclose(in_memory.obsm["X_langcell"], expected.obsm["X_langcell"], atol=1e-5)
    with open_lightly(path) as lightly:
        assert lightly.shape == cells.shape


def test_a_zarr_store_is_copied_with_all_that_it_holds(cells, tmp_path, monkeypatch):
    monkeypatch.setattr("modeling_langcell.io.containers._BLOCK", 1000)
    adata = cells.copy()
    adata.raw = adata
    adata.layers["logs"], adata.layers["by column"] = np.log1p(adata.X.toarray()), adata.X.tocsc()
    adata.obsm["X_pca"], adata.obsm["table"] = np.arange(120.0).reshape(60, 2), adata.obs.copy()
    adata.obsp["distances"] = sp.eye(60, format="csr")
    adata.obs["maybe"] = pd.array([True, None, *[False] * 58], dtype="boolean")
    adata.uns = {"log1p": {"base": None}, "text": "words", "number": 3, "names": np.array(["a", "b"])}
    path = write_zarr(adata, tmp_path)
    with as_h5ad(path, tmp_path / "copy.h5ad") as copy:
        found = ad.read_h5ad(copy)
    expected = ad.read_zarr(path)
    for part in ("obs", "var"):
        pd.testing.assert_frame_equal(getattr(found, part), getattr(expected, part))
    for name in ("X", "raw"):
        one, other = (adata.raw.X if name == "raw" else adata.X for adata in (found, expected))
        np.testing.assert_array_equal(one.toarray(), other.toarray())
    assert {*found.layers} - {None} == {"logs", "by column"}
    np.testing.assert_array_equal(found.layers["logs"], expected.layers["logs"])
    assert found.layers["by column"].format == "csc"
    np.testing.assert_array_equal(found.obsm["X_pca"], expected.obsm["X_pca"])
    assert (found.obsp["distances"] != expected.obsp["distances"]).nnz == 0
    assert {**found.uns, "names": [*found.uns["names"]]} == {**expected.uns, "names": ["a", "b"]}


@pytest.mark.long
@pytest.mark.parametrize("write", [write_zarr, write_10x, write_10x_of_two, write_loom])
def test_large_containers_are_copied_in_blocks(write, cells, tmp_path, monkeypatch):
    monkeypatch.setattr("modeling_langcell.io.containers._BLOCK", 2**15)
    monkeypatch.setattr("modeling_langcell.io.containers._LOOM_BLOCK", 16)
    many = cells[np.tile(np.arange(60), 60), :1500].copy()
    many.obs_names_make_unique()
    path = write(many, tmp_path)
    tracemalloc.start()
    with as_h5ad(path, tmp_path / "copy.h5ad") as copy:
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        np.testing.assert_array_equal(ad.read_h5ad(copy).X.toarray(), many.X.toarray())
    assert most < (many.X.data.nbytes + many.X.indices.nbytes) / 2, f"{most / 2**20:.0f} MB at once"


def test_matrices_of_two_organisms_are_refused_with_what_reads_one(cells, tmp_path):
    path = write_10x_of_two(cells, tmp_path)
    with h5py.File(path, "r+") as file:
        file.copy("GRCh38", "mm10")
    with pytest.raises(
        InputError, match="has the matrices GRCh38, mm10: write one of them into a file of its own"
    ) as said:
        open_cells(path)
    advice = re.search(r"as in (scanpy\S+ genome='GRCh38'\)\.write_h5ad\('cells.h5ad'\))", str(said.value))[1]
    run_python("-c", f"import scanpy; {advice}", cwd=tmp_path)
    np.testing.assert_array_equal(ad.read_h5ad(tmp_path / "cells.h5ad").X.toarray(), cells.X.toarray())


def test_an_h5ad_file_is_not_copied(cells, tmp_path):
    cells.write_h5ad(tmp_path / "cells.h5ad")
    with as_h5ad(tmp_path / "cells.h5ad", tmp_path / "copy.h5ad") as file:
        assert file == tmp_path / "cells.h5ad"
        assert not (tmp_path / "copy.h5ad").exists()


def test_a_container_that_changes_meanwhile_is_refused(annotator, cells, tmp_path, monkeypatch):
    path = write_zarr(cells, tmp_path)
    annotate = AnnotationRun.annotate

    def and_change(*arguments, **options):
        (path / "note").write_text("changed")
        return annotate(*arguments, **options)

    monkeypatch.setattr(AnnotationRun, "annotate", and_change)
    with pytest.raises(InputError, match="was changed while its cells were annotated"):
        annotate_file(annotator, path, tmp_path / "annotated.h5ad", LABELS)
    assert not (tmp_path / "annotated.h5ad").exists()


def gzipped(cells, folder):
    cells.write_h5ad(folder / "plain.h5ad")
    with open(folder / "plain.h5ad", "rb") as plain, gzip.open(folder / "cells.h5ad.gz", "wb") as packed:
        shutil.copyfileobj(plain, packed)
    return folder / "cells.h5ad.gz"


def of_proteins(cells, folder):
    with h5py.File(folder / "cells.h5mu", "w") as file:
        ad.io.write_elem(file.create_group("mod"), "prot", cells[:, :3].copy())
        ad.io.write_elem(file["mod"], "atac", cells[:, :3].copy())
    return folder / "cells.h5mu"


def two_samples(cells, folder):
    write_matrix_market(cells, folder, "GSM1_")
    (folder / "filtered_feature_bc_matrix" / "GSM2_matrix.mtx.gz").write_bytes(b"")
    return folder / "filtered_feature_bc_matrix"


def empty(cells, folder):
    (folder / "empty").mkdir()
    return folder / "empty"


def seurat(cells, folder):
    (folder / "cells.rds").write_bytes(b"RDX3")
    return folder / "cells.rds"


def table(cells, folder):
    cells[:5, :5].to_df().to_csv(folder / "cells.csv")
    return folder / "cells.csv"


def named(name, content=b"something"):
    def write(cells, folder):
        (folder / name).write_bytes(content)
        return folder / name

    return write


def seurat_in_hdf5(cells, folder):
    with h5py.File(folder / "cells.h5Seurat", "w") as file:
        file.create_group("assays/RNA")
    return folder / "cells.h5Seurat"


def molecules(cells, folder):
    with h5py.File(folder / "molecule_info.h5", "w") as file:
        file["umi"] = np.arange(3)
    return folder / "molecule_info.h5"


def outs(cells, folder):
    (folder / "outs").mkdir()
    write_matrix_market(cells, folder / "outs")
    return folder / "outs"


def spatial_data(cells, folder):
    zarr.open_group(str(folder / "sd.zarr"), mode="w")
    (folder / "sd.zarr" / "tables").mkdir()
    cells.write_zarr(folder / "sd.zarr" / "tables" / "table")
    return folder / "sd.zarr"


def zipped(*names):
    def write(cells, folder):
        with zipfile.ZipFile(folder / "cells.zarr.zip", "w") as archive:
            for name in names:
                archive.writestr(name, "{}")
        return folder / "cells.zarr.zip"

    return write


@pytest.mark.parametrize(
    ("write", "advice"),
    [
        (named("a file.h5ad.gz"), "gunzip '{path}'"),
        (named("cells.tar.gz"), "tar xf {path}"),
        (named("cells.tgz"), "tar xf {path}"),
        (named("cells.h5ad.xz"), "unxz {path}"),
        (named("cells.RData"), "get(load('{path}'))"),
        (named("cells.qs"), "qs::qread('{path}')"),
        (named("cells.parquet"), "pandas.read_parquet('{path}')"),
        (named("counts.xlsx"), "pandas.read_excel('{path}', index_col=0)"),
        (named("counts.tab"), "anndata.io.read_text('{path}')"),
        (named("it's.csv", b"a,b\n"), 'anndata.io.read_csv("{path}").write'),
        (named("semicolons.csv", b"a;b;c\n1;2;3\n"), "read_csv('{path}', delimiter=';').write"),
        (named("tabs.csv", b"a\tb\n"), r"read_csv('{path}', delimiter='\t').write"),
        (named("DGE.mtx.gz"), "call it matrix.mtx (or .mtx.gz), with features.tsv and barcodes.tsv beside it"),
        (named("cells.h5ad", b"\x1f\x8b packed"), "is packed, in spite of its name. Unpack it first: gunzip < {path}"),
        (named("cells.h5ad", b""), "{path} is empty."),
        (seurat_in_hdf5, "SeuratDisk::Convert('{path}', dest = 'h5ad')"),
        (molecules, "is in HDF5, but holds no cells as an .h5ad file does. It has umi."),
        (outs, "there are some in it: give {path}/filtered_feature_bc_matrix."),
        (spatial_data, "there are some in it: give {path}/tables/table."),
        (zipped(".zgroup", "X/.zgroup"), "unzip {path} -d cells.zarr"),
        (zipped("cells.zarr/.zgroup", "cells.zarr/X/.zgroup"), "Unpack it first: unzip {path}"),
        (gzipped, "gunzip {path}"),
        (of_proteins, "MuData with the modalities atac, prot"),
        (two_samples, "has 2 matrices: give one of GSM1_matrix.mtx.gz, GSM2_matrix.mtx.gz"),
        (empty, "is a folder without cells"),
        (seurat, "zellkonverter::writeH5AD"),
        (table, "anndata.io.read_csv('{path}').write_h5ad('cells.h5ad')"),
    ],
)
def test_others_are_named_with_what_converts_them(write, advice, cells, tmp_path):
    path = write(cells, tmp_path)
    for read in (open_cells, lambda path: open_lightly(path).__enter__()):
        with pytest.raises(InputError) as error:
            read(path)
        assert advice.format(path=path) in str(error.value)


def test_the_advice_for_a_packed_file_and_for_a_table_works(cells, tmp_path):
    path = gzipped(cells, tmp_path)
    subprocess.run(["gunzip", path], check=True)
    assert open_cells(tmp_path / "cells.h5ad").shape == cells.shape
    expression = f"anndata.io.read_csv('{table(cells, tmp_path)}').write_h5ad('{tmp_path}/converted.h5ad')"
    subprocess.run([sys.executable, "-c", f"import anndata; import anndata.io; {expression}"], check=True)
    assert open_cells(tmp_path / "converted.h5ad").shape == (5, 5)


@pytest.mark.parametrize("name", ["rna", "GEX", "Gene Expression", "gene_expression", "transcriptome", "expr"])
def test_a_modality_of_genes_is_told_by_its_name(name, cells, tmp_path):
    with h5py.File(tmp_path / "cells.h5mu", "w") as file:
        ad.io.write_elem(file.create_group("mod"), "prot", cells[:, :3].copy())
        ad.io.write_elem(file["mod"], name, cells)
    assert open_cells(tmp_path / "cells.h5mu").shape == cells.shape


def test_the_advised_modality_is_not_one_of_proteins(cells, tmp_path):
    with h5py.File(tmp_path / "cells.h5mu", "w") as file:
        for name in ("atac", "prot", "mine"):
            ad.io.write_elem(file.require_group("mod"), name, cells[:, :3].copy())
    with pytest.raises(InputError, match=r"\['mine'\]\.write_h5ad"):
        open_cells(tmp_path / "cells.h5mu")


def test_what_cellbender_writes_beside_the_matrix_is_left_out(cells, tmp_path):
    path = write_10x(cells, tmp_path)
    with h5py.File(path, "r+") as file:
        for name in ("metadata", "droplet_latents", "global_latents"):
            file.create_group(name)["x"] = 1
    assert open_cells(path).shape == cells.shape


@pytest.mark.parametrize("part", ["data", "indices"])
def test_a_part_of_a_zarr_store_that_is_lost_is_named(part, cells, tmp_path):
    path = write_zarr(cells, tmp_path)
    array = path / "X" / part
    chunk = next(file for file in sorted(array.rglob("*")) if file.is_file() and file.name[0] not in ".z")
    chunk.unlink()
    with pytest.raises(InputError, match=rf"cells\.zarr has lost 1 of \d+ parts of X/{part}: use a whole copy"):
        open_cells(path)
    with pytest.raises(InputError, match="has lost 1 of"), as_h5ad(path, tmp_path / "out.h5ad"):
        pass
    assert not [one for one in tmp_path.iterdir() if one.name.startswith(".") or one.suffix == ".h5ad"]


def test_a_damaged_container_is_named(cells, tmp_path):
    path = write_10x(cells, tmp_path)
    with h5py.File(path, "r+") as file:
        del file["matrix/indptr"]
    with pytest.raises(InputError, match=r"filtered_feature_bc_matrix.h5 cannot be read: .* Use an intact copy"):
        open_cells(path)


def damage_zarr(cells, folder):
    path = write_zarr(cells, folder)
    for chunk in (path / "X" / "data").glob("[0-9c]*"):
        for file in [chunk] if chunk.is_file() else [one for one in chunk.rglob("*") if one.is_file()]:
            file.write_bytes(b"no numbers")
    return path


def damage_10x(cells, folder):
    path = write_10x(cells, folder)
    with h5py.File(path, "r+") as file:
        counts = file["matrix/data"][:]
        del file["matrix/data"]
        data = file["matrix"].create_dataset("data", data=counts, chunks=(1000,), compression="gzip")
        stored = data.id.get_chunk_info(3)
    with path.open("r+b") as file:
        file.seek(stored.byte_offset)
        file.write(b"no numbers")
    return path


@pytest.mark.parametrize("damage", [damage_zarr, damage_10x])
def test_damage_is_found_while_it_is_copied_and_is_not_said_of_the_copy(damage, cells, tmp_path):
    path = damage(cells, tmp_path)
    said = pytest.raises(InputError, match=f"{path.name} cannot be read: .* Use an intact copy")
    with said, as_h5ad(path, tmp_path / "copy.h5ad"):
        pass
    assert not (tmp_path / "copy.h5ad").exists()


@pytest.mark.parametrize("write", [write_zarr, write_10x, write_loom, write_matrix_market])
def test_a_full_disk_is_said_of_the_copy(write, cells, tmp_path):
    path = write(cells, tmp_path)
    code = f"""
        from pathlib import Path
        from modeling_langcell.io.containers import as_h5ad
        try:
            with as_h5ad(Path({str(path)!r}), Path("copy.h5ad")):
                pass
        except ValueError as error:
            print(type(error).__name__, error)
    """
    ran = run_python("-c", textwrap.dedent(code), cwd=tmp_path, largest=20_000)
    assert "InputError copy.h5ad cannot be written: " in ran.stdout, ran.stderr
    assert not (tmp_path / "copy.h5ad").exists()


def test_a_container_that_refers_to_another_file_is_refused(cells, tmp_path):
    path = write_10x(cells, tmp_path)
    with h5py.File(path, "r+") as file:
        file["matrix/secret"] = h5py.ExternalLink("other.h5", "/data")
    with pytest.raises(InputError, match="refers to another file"):
        open_cells(path)


def test_a_file_that_is_open_elsewhere_is_said_to_be_in_use(cells, tmp_path):
    path = tmp_path / "cells.h5ad"
    cells.write_h5ad(path)
    hold = f"import h5py, sys; file = h5py.File({str(path)!r}, 'r+'); print('open', flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as notebook:
        notebook.stdout.readline()
        try:
            with pytest.raises(InputError, match=r"is in use: .* Close it there"):
                open_cells(path)
        finally:
            notebook.communicate(b"")
    assert open_cells(path).shape == cells.shape


@pytest.mark.long
def test_the_command_reads_a_folder_and_never_replaces_a_container(cells, tmp_path):
    folder, matrix = write_matrix_market(cells, tmp_path), write_10x(cells, tmp_path)
    before = matrix.read_bytes()
    annotate = ("-m", "modeling_langcell.cli", "annotate")
    run_python(*annotate, folder, "--labels", ";".join(LABELS), cwd=tmp_path, check=True)
    assert (tmp_path / "filtered_feature_bc_matrix_langcell.h5ad").exists()
    done = run_python(*annotate, matrix, "--labels", ";".join(LABELS), "--out", matrix, cwd=tmp_path)
    assert done.returncode == 2
    assert matrix.read_bytes() == before


def test_duplicated_gene_names_stay_as_they_are(cells, tmp_path):
    twice = ad.AnnData(
        sp.hstack([cells.X[:, :100], cells.X[:, :100]], format="csr"),
        obs=cells.obs,
        var=pd.DataFrame(index=[*cells.var["symbol"][:100]] * 2),
    )
    twice.var["symbol"] = twice.var_names
    twice.write_zarr(tmp_path / "twice.zarr")
    assert open_cells(tmp_path / "twice.zarr").var_names.tolist() == twice.var_names.tolist()

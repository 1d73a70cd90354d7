# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""`.h5ad` files: unusual but valid ones are read, damaged and foreign ones refused, annotations written atomically."""

import logging
import textwrap

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest

from modeling_langcell import InputError
from modeling_langcell.io.h5ad import open_cells, open_lightly, read_annotation, write_annotated
from tests.support.commands import run_python


@pytest.fixture
def cells_file(cells, tmp_path):
    path = tmp_path / "cells.h5ad"
    cells.write_h5ad(path)
    return path


def test_a_committed_datatype_is_read(cells, cells_file):
    """HDF5 files may name a datatype, which is neither a group nor a dataset."""
    with h5py.File(cells_file, "a") as file:
        file["uns/type"] = np.dtype("f4")
        assert isinstance(file["uns/type"], h5py.Datatype)
    with open_lightly(cells_file) as opened:
        assert (opened.X.to_memory() != cells.X).nnz == 0


@pytest.mark.parametrize("link", ["external link", "external dataset", "virtual dataset"])
def test_references_to_other_files_are_refused(cells_file, tmp_path, link):
    other = tmp_path / "other.h5"
    with h5py.File(other, "w") as file:
        file["secret"] = np.arange(12)
    with h5py.File(cells_file, "a") as file:
        if link == "external link":
            file["obs/secret"] = h5py.ExternalLink(other, "secret")
        elif link == "external dataset":
            file.create_dataset("obs/secret", (12,), dtype="i8", external=[(str(other), 0, 96)])
        else:
            layout = h5py.VirtualLayout((12,), dtype="i8")
            layout[:] = h5py.VirtualSource(str(other), "secret", (12,))
            file.create_virtual_dataset("obs/secret", layout)
    for open_file in (open_cells, lambda path: open_lightly(path).__enter__()):
        with pytest.raises(InputError, match=r"cells\.h5ad refers to another file for obs/secret"):
            open_file(cells_file)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "^No file"),
        (b"", "is empty"),
        (b"obs", "is not an .h5ad file"),
        (2000, "cannot be read as .h5ad"),
    ],
)
def test_what_cannot_be_read_is_refused(cells_file, content, message):
    if content is None:
        cells_file.unlink()
    else:
        cells_file.write_bytes(cells_file.read_bytes()[:content] if isinstance(content, int) else content)
    for open_file in (open_cells, lambda path: open_lightly(path).__enter__()):
        with pytest.raises(InputError, match=message):
            open_file(cells_file)


def test_open_lightly_leaves_matrices_on_disk(cells, cells_file):
    cells.layers["counts"] = cells.X.copy()
    cells.raw = cells
    cells.obsm["large"] = np.zeros((12, 3))
    cells.write_h5ad(cells_file)
    with open_lightly(cells_file) as opened:
        assert opened.isbacked
        assert opened.obs_names.equals(cells.obs_names)
        assert opened.raw.var_names.equals(cells.var_names)
        assert isinstance(opened.layers["counts"], ad.abc.CSRDataset)
        assert not opened.obsm
    h5py.File(cells_file, "a").close()  # The file is closed again.


def test_files_of_old_anndata_are_read_and_reported(cells_file, caplog):
    with h5py.File(cells_file, "a") as file:
        file.attrs.clear()
        for name in ("obs", "var"):
            index = file[name][file[name].attrs["_index"]][:].astype("S20")
            del file[name]
            file[name] = np.array(list(zip(index, strict=True)), dtype=[("index", "S20")])
    with caplog.at_level(logging.INFO, "modeling_langcell"), open_lightly(cells_file) as opened:
        assert opened.obs_names[0] == "cell0"
    assert "written before anndata 0.7" in caplog.text


def test_a_file_without_an_annotation_is_refused(cells_file, tmp_path):
    with pytest.raises(InputError, match="has no annotation by LangCell"):
        read_annotation(cells_file)
    with pytest.raises(InputError, match="No file"):
        read_annotation(tmp_path / "absent.h5ad")


class TestWriteAnnotated:
    @pytest.mark.parametrize("backed", [False, True])
    def test_round_trip(self, cells, cells_file, tmp_path, backed):
        adata = open_cells(cells_file) if backed else cells
        adata.obs["langcell_cell_type"] = "b cell"
        adata.obsm["X_langcell"] = np.ones((12, 2), dtype=np.float32)
        adata.uns["langcell"] = {"alpha": 0.5}
        output = write_annotated(adata, tmp_path / "new" / "out.h5ad")
        assert (ad.read_h5ad(output).X != cells.X).nnz == 0
        for embeds in (False, True):
            found = read_annotation(output, embeds=embeds)
            assert set(found.obs["langcell_cell_type"]) == {"b cell"}
            assert found.uns["langcell"] == {"alpha": 0.5}
            assert ("X_langcell" in found.obsm) == embeds
        assert [path.name for path in output.parent.iterdir()] == ["out.h5ad"]
        assert output.stat().st_mode & 0o777 == cells_file.stat().st_mode & 0o777

    @pytest.mark.parametrize("backed", [False, True])
    def test_a_full_disk_is_an_input_error(self, cells_file, tmp_path, backed):
        """
        The kernel refuses the write by RLIMIT_FSIZE as on a full disk. HDF5 makes a RuntimeError of that and does not
        recover, so this needs a process of its own.
        """
        code = f"""
            import anndata as ad
            from modeling_langcell.io.h5ad import open_cells, write_annotated
            adata = open_cells({str(cells_file)!r}) if {backed} else ad.read_h5ad({str(cells_file)!r})
            try:
                write_annotated(adata, "new/out.h5ad")
            except ValueError as error:
                print(type(error).__name__, error)
        """
        ran = run_python("-c", textwrap.dedent(code), cwd=tmp_path, largest=2000)
        assert "InputError new/out.h5ad cannot be written: " in ran.stdout, ran.stderr
        assert not (tmp_path / "new").exists()

    def test_nothing_is_left_after_an_error(self, cells, tmp_path, monkeypatch):
        def fail(*_, **__):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(ad.AnnData, "write_h5ad", fail)
        with pytest.raises(InputError, match=r"out\.h5ad cannot be written: No space left on device"):
            write_annotated(cells, tmp_path / "out.h5ad")
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "values",
    [
        lambda n: [[row] for row in range(n)],
        lambda n: ["text", *range(n - 1)],
        lambda n: pd.period_range("2026-01", periods=n, freq="M"),
        lambda n: pd.date_range("2026-01-01", periods=n, tz="UTC"),
        lambda n: pd.to_timedelta(range(n), unit="s"),
    ],
)
def test_a_column_that_cannot_be_written_is_named(cells, tmp_path, values):
    cells.obs["odd"] = values(cells.n_obs)
    with pytest.raises(InputError, match=r"out\.h5ad cannot be written: .* It is about obs\['odd'\]: rename"):
        write_annotated(cells, tmp_path / "out.h5ad")
    assert not list(tmp_path.iterdir())
    cells.obs["odd"] = cells.obs["odd"].astype(str)  # The advice works.
    assert write_annotated(cells, tmp_path / "out.h5ad").exists()


@pytest.mark.parametrize("strings", ["obs", "index"])
def test_text_with_missing_values_comes_out_as_it_was(cells, tmp_path, strings):
    """As pandas 3 keeps text: anndata writes it only if a setting allows it."""
    path = tmp_path / "cells.h5ad"
    cells.obs["donor"] = pd.array([None if row % 5 == 0 else f"D{row % 3}" for row in range(cells.n_obs)], "string")
    if strings == "index":
        cells.obs.index = pd.Index(pd.array(cells.obs_names.to_list(), "string"))
    with ad.settings.override(allow_write_nullable_strings=True):
        cells.write_h5ad(path)
    backed = open_cells(path)
    backed.uns["more"] = 1
    write_annotated(backed, tmp_path / "backed.h5ad")
    write_annotated(ad.read_h5ad(path), tmp_path / "memory.h5ad")
    for name in ("backed.h5ad", "memory.h5ad"):
        found = ad.read_h5ad(tmp_path / name).obs["donor"]
        assert found.isna().tolist() == cells.obs["donor"].isna().tolist()
        assert found.dropna().tolist() == cells.obs["donor"].dropna().tolist()
    assert not ad.settings.allow_write_nullable_strings


@pytest.mark.parametrize("key", ["organism", "Species", "organism_ontology_label", "Organism"])
def test_the_organism_that_a_file_notes_is_read(cells, tmp_path, key):
    cells.uns |= {key: "Macaca mulatta", "neighbors": {"large": np.zeros(9)}, "log1p": {"base": None}}
    cells.write_h5ad(tmp_path / "noted.h5ad")
    with open_lightly(tmp_path / "noted.h5ad") as found:
        assert set(found.uns) == {key, "log1p"}
        assert found.uns[key] == "Macaca mulatta"

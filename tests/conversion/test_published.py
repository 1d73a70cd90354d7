# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Conversion of the published layout: damaged, unsafe and unfit files are refused, and nothing is left behind."""

import copyreg
import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoProcessor

from modeling_langcell import InputError, LangCellFeatureExtractor, LangCellModel
from modeling_langcell.conversion.published import PARTS, convert, read_gene_vocabulary
from tests.support.commands import run_without_the_package
from tests.support.tiny import GENES, SYMBOLS, WORDS, tiny_config

MEDIANS = np.linspace(0.5, 4.0, len(GENES))
WORD_ROWS = "embeddings.word_embeddings.weight"
#: Settings that are no defaults.
UNUSUAL = {"hidden_act": "gelu_new", "hidden_dropout_prob": 0.3, "attention_probs_dropout_prob": 0.2}
UNUSUAL |= {"initializer_range": 0.05, "layer_norm_eps": 1e-7}
TOKEN_TYPES = "embeddings.token_type_embeddings.weight"


@pytest.fixture
def dictionaries(tmp_path) -> dict[str, Path]:
    """The arguments of `read_gene_vocabulary`: the forty genes as three pickles."""
    contents = {
        "token_dictionary": {"<pad>": 0, "<mask>": 1} | {gene: np.int16(row) for row, gene in enumerate(GENES, 2)},
        "gene_medians": dict(zip(GENES, MEDIANS, strict=True)),
        "gene_names": dict(zip(SYMBOLS, GENES, strict=True)),
    }
    paths = {name: tmp_path / f"{name}.pkl" for name in contents}
    for name, content in contents.items():
        paths[name].write_bytes(pickle.dumps(content))
    return paths


@pytest.fixture
def published(dictionaries, tmp_path) -> dict[str, Path]:
    """The arguments of `convert` for a tiny random checkpoint in the published layout."""
    torch.manual_seed(0)
    config = tiny_config(cell_config=UNUSUAL, text_config=UNUSUAL | {"vocab_size": len(WORDS) + 2})
    model = LangCellModel(config)
    parts, words = tmp_path / "parts", tmp_path / "vocab.txt"
    for tower, tower_config in (("cell_bert", config.cell_config), ("text_bert", config.text_config)):
        (parts / tower).mkdir(parents=True)
        (parts / tower / "config.json").write_text(json.dumps(tower_config.to_dict() | {"vocab_size": 1}))
    for module, name in PARTS.items():
        state = dict(model.get_submodule(module).state_dict())
        if module == "cell_model":
            state[TOKEN_TYPES] = torch.randn(2, config.cell_config.hidden_size)
        torch.save(state, parts / name)
    words.write_text("\n".join(WORDS) + "\n")
    return {"parts": parts, **dictionaries, "text_vocab": words, "output": tmp_path / "made" / "converted"}


def change_weights(path: Path, change) -> dict:
    """Rewrites a torch file after `change(state)`."""
    state = torch.load(path, weights_only=True)
    change(state)
    torch.save(state, path)
    return state


def change_dictionary(path: Path, change) -> None:
    dictionary = pickle.loads(path.read_bytes())
    change(dictionary)
    path.write_bytes(pickle.dumps(dictionary))


def refused(arguments: dict[str, Path], message: str) -> str:
    """Checks that conversion, or reading, is refused with such a message, and that the disk is as it was."""
    folder = arguments["gene_medians"].parent
    before = sorted(folder.rglob("*"))
    with pytest.raises(InputError, match=message) as error:
        convert(**arguments) if "parts" in arguments else read_gene_vocabulary(**arguments)
    assert sorted(folder.rglob("*")) == before
    return str(error.value)


# ---------------------------------------------------------------------- what comes out

READ_BACK = """
import sys
import scipy.sparse as sp
from safetensors.torch import save_file
from transformers import AutoModel, AutoProcessor
folder, out, *genes = sys.argv[1:]
model = AutoModel.from_pretrained(folder, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
assert "modeling_langcell" not in sys.modules
cells = sp.csr_matrix([[3, 0, 2, 7], [1, 1, 0, 0]])
batch = processor(cells=cells, gene_ids=genes, text=["b cell", "natural killer"], return_tensors="pt")
outputs = model(**batch, return_matching=True)
save_file({"ids": batch["cell_input_ids"], "text": batch["input_ids"], "matching": outputs.matching_logits.detach(),
    "similarity": outputs.logits_per_cell.detach().contiguous()}, out)
"""


def test_a_fresh_process_without_the_package_reads_what_was_converted(published, tmp_path):
    output = convert(**published)
    assert output == published["output"]
    assert {*tmp_path.iterdir()} == {output.parent, *published.values()} - {output}
    assert [*output.parent.iterdir()] == [output]

    arguments = (output, tmp_path / "read.safetensors", *SYMBOLS[:4])
    run_without_the_package("-c", READ_BACK, *arguments, cwd=tmp_path, cache=tmp_path / "cache", check=True)
    read = load_file(tmp_path / "read.safetensors")
    # Values are counts over medians of 0.5, 0.59, 0.68 and 0.77.
    assert read["ids"].tolist() == [[42, 5, 2, 4], [42, 2, 3, 0]]
    words = [WORDS.index(word) for word in ("[CLS]", "natural", "killer", "[SEP]")]
    assert read["text"][1].tolist() == words
    model, processor = AutoModel.from_pretrained(output), AutoProcessor.from_pretrained(output)
    with torch.inference_mode():
        ours = model(read["ids"], (read["ids"] != 0).long(), read["text"], return_matching=True)
    assert torch.allclose(read["matching"], ours.matching_logits, atol=1e-6)
    assert torch.allclose(read["similarity"], ours.logits_per_cell, atol=1e-5)
    assert processor.feature_extractor.max_length == 64
    assert processor.tokenizer.model_max_length == 32
    assert processor.tokenizer.convert_tokens_to_ids(["[DEC]", "[ENC]"]) == [len(WORDS), len(WORDS) + 1]


def test_weights_are_the_published_ones_under_new_names(published):
    weights = load_file(convert(**published) / "model.safetensors")
    for module, name in PARTS.items():
        for key, value in torch.load(published["parts"] / name, weights_only=True).items():
            if key == "embeddings.position_embeddings.weight" and module == "cell_model":
                cell = torch.load(published["parts"] / PARTS["cell_model"], weights_only=True)
                value = value + cell[TOKEN_TYPES][0]
            if key != TOKEN_TYPES:
                assert torch.equal(weights.pop(f"{module}.{key}"), value)
    assert not weights


def test_geometry_is_the_published_one(published):
    config = AutoConfig.from_pretrained(convert(**published))
    expected = tiny_config(cell_config=UNUSUAL, text_config=UNUSUAL | {"vocab_size": len(WORDS) + 2})
    same = {"hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "max_position_embeddings"}
    for tower in ("cell_config", "text_config"):
        for key in same | {"vocab_size", "pad_token_id"} | UNUSUAL.keys():
            assert getattr(getattr(config, tower), key) == getattr(getattr(expected, tower), key), key
    assert config.projection_dim == expected.projection_dim


def test_unused_parts_of_a_bert_are_left_out(published):
    plain = load_file(convert(**published) / "model.safetensors")

    def dress(state):
        dressed = {f"bert.{name}": value for name, value in state.items()}
        dressed["cls.predictions.bias"] = dressed["bert.pooler.dense.bias"] = torch.zeros(3)
        dressed["bert.embeddings.position_ids"] = torch.arange(64)[None]
        state.clear()
        state.update(dressed)

    change_weights(published["parts"] / PARTS["cell_model"], dress)
    published["output"] = published["output"].with_name("dressed")
    dressed = load_file(convert(**published) / "model.safetensors")
    assert plain.keys() == dressed.keys()
    assert all(torch.equal(plain[name], dressed[name]) for name in plain)


def test_a_geneformer_encoder_gets_a_cls_embedding(published):
    path = published["parts"] / PARTS["cell_model"]
    state = change_weights(path, lambda state: state.update({WORD_ROWS: state[WORD_ROWS][:-1]}))
    weights = load_file(convert(**published) / "model.safetensors")[f"cell_model.{WORD_ROWS}"]
    assert weights.shape == (len(GENES) + 3, 16)
    assert torch.equal(weights[:-1], state[WORD_ROWS])
    assert torch.allclose(weights[-1], state[WORD_ROWS][2:].mean(dim=0))


def test_dec_and_enc_of_the_vocabulary_stay_where_they_are(published):
    published["text_vocab"].write_text("\n".join(["[ENC]", *WORDS, "[DEC]"]) + "\n")
    tokenizer = AutoProcessor.from_pretrained(convert(**published)).tokenizer
    assert tokenizer.convert_tokens_to_ids(["[ENC]", "[PAD]", "[DEC]"]) == [0, 1, len(WORDS) + 1]
    assert (tokenizer.enc_token_id, tokenizer.bos_token_id) == (0, len(WORDS) + 1)


def test_an_empty_output_folder_is_used(published):
    published["output"].mkdir(parents=True)
    assert (convert(**published) / "config.json").is_file()


# ---------------------------------------------------------------------- what is refused


def test_missing_files_are_named_together(published):
    for name in ("cell_proj.bin", "text_bert/config.json"):
        (published["parts"] / name).unlink()
    published["gene_medians"].unlink()
    message = refused(published, "Not found")
    assert all(name in message for name in ("cell_proj.bin", "config.json", "gene_medians.pkl"))
    assert "cell_bert" not in message


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_an_existing_output_is_left_alone(published, kind):
    output = published["output"]
    output.parent.mkdir()
    if kind == "folder":
        output.mkdir()
    kept = output if kind == "file" else output / "notes.txt"
    kept.write_text("mine")
    refused(published, "already exists")
    assert kept.read_text() == "mine"


@pytest.mark.parametrize("name", PARTS.values())
def test_truncated_weights(published, name):
    path = published["parts"] / name
    path.write_bytes(path.read_bytes()[:-200])
    assert name in refused(published, "not a complete PyTorch file")


def test_weights_that_run_code(published, tmp_path):
    path, marker = published["parts"] / "ctm_head.bin", tmp_path / "marker"
    torch.save({"weight": torch.zeros(2, 24), "bias": MakeFolder(marker)}, path)
    torch.load(path, weights_only=False)
    marker.rmdir()  # The file is live: a careless reader would have run it.
    assert "ctm_head.bin" in refused(published, "not a complete PyTorch file of weights alone")
    assert not marker.exists()


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("cell_model", lambda s: s.pop("encoder.layer.1.output.dense.bias"), r"missing 'encoder\.layer\.1\.output"),
        ("cell_model", lambda s: s.pop(WORD_ROWS), "missing 'embeddings.word_embeddings"),
        ("cell_model", lambda s: s.update(stray=torch.zeros(2)), "unexpected 'stray'"),
        ("cell_model", lambda s: s.update({TOKEN_TYPES: torch.zeros(0, 16)}), "token_type_embeddings.weight is"),
        ("text_model", lambda s: s.update({TOKEN_TYPES: torch.zeros(2, 24)}), "unexpected 'embeddings.token_type"),
        ("cell_model", lambda s: s.update({"bert.encoder.layer.0.output.dense.bias": torch.zeros(16)}), "twice"),
        (
            "cell_model",
            lambda s: s.update({WORD_ROWS: s[WORD_ROWS][:-2]}),
            f"embeds {len(GENES) + 1} tokens.* has {len(GENES) + 3}",
        ),
        (
            "text_model",
            lambda s: s.update({WORD_ROWS: s[WORD_ROWS][:-1]}),
            f"text_bert.* embeds {len(WORDS) + 1} tokens.* has {len(WORDS) + 2}",
        ),
        ("cell_projection", lambda s: s.update(weight=s["weight"][:, :-1]), r"weight is \(12, 15\) and should be"),
        ("text_projection", lambda s: s.update(weight=s["weight"][:-1]), r"weight is \(11, 24\) and should be \(12"),
        ("matching_head", lambda s: s.update(bias=torch.zeros(3)), r"bias is \(3,\) and should be \(2,\)"),
        ("matching_head", lambda s: s.update(bias=torch.tensor([0.0, np.nan])), "bias is not a dense tensor of finite"),
        ("matching_head", lambda s: s.update(bias=[0.0, 1.0]), "found more than numbers"),
        ("cell_projection", lambda s: s.update(weight=torch.tensor(1.0)), "weight is not a dense tensor"),
    ],
)
def test_weights_that_do_not_fit(published, part, change, message):
    change_weights(published["parts"] / PARTS[part], change)
    assert PARTS[part] in refused(published, message)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("hidden_size"), "lacks hidden_size"),
        (lambda c: c.update(hidden_size="16"), "hidden_size must be positive"),
        (lambda c: c.update(num_attention_heads=0), "num_attention_heads must be positive"),
        (lambda c: c.update(num_attention_heads=5), "multiple of num_attention_heads"),
        (lambda c: c.update(hidden_act="step"), "'step' is not a known hidden_act"),
        (lambda c: c.update(layer_norm_eps="small"), "does not fit"),
        (lambda c: c.update(position_embedding_type="relative_key"), "position_embedding_type"),
        (lambda c: c.update(num_hidden_layers=3), r"missing 'encoder\.layer\.2"),
        (lambda c: c.update(num_hidden_layers=1), r"unexpected 'encoder\.layer\.1"),
    ],
)
def test_configs_that_do_not_fit(published, change, message):
    path = published["parts"] / "cell_bert/config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))
    refused(published, message)


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff\xfe"])
def test_damaged_configs(published, content):
    (published["parts"] / "text_bert/config.json").write_bytes(content)
    refused(published, r"text_bert.config\.json (cannot be read|lacks hidden_size)")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([word for word in WORDS if word != "[SEP]"], r"lacks \[SEP\]"),
        ([*WORDS, "cell"], "same token on several lines"),
        (WORDS[:-1], f"embeds {len(WORDS) + 2} tokens.* has {len(WORDS) + 1}"),
    ],
)
def test_vocabularies_that_do_not_fit(published, words, message):
    published["text_vocab"].write_text("\n".join(words) + "\n")
    refused(published, message)


def test_a_vocabulary_that_is_not_text(published):
    published["text_vocab"].write_bytes(b"\xff\xfe\x00")
    assert "vocab.txt" in refused(published, "not text in UTF-8")


def test_nothing_is_left_when_writing_fails(published, monkeypatch):
    monkeypatch.setattr("modeling_langcell.conversion.published._verify", fail)
    refused(published, "cannot be written: no space left")


def fail(*_):
    raise OSError("no space left")


def test_a_folder_that_loads_differently_is_not_kept(published, monkeypatch):
    save = LangCellModel.save_pretrained

    def save_wrongly(self, folder, **kwargs):
        save(self, folder, **kwargs)
        weights = load_file(folder / "model.safetensors")
        weights["matching_head.bias"][0] += 1e-6
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    monkeypatch.setattr(LangCellModel, "save_pretrained", save_wrongly)
    with pytest.raises(RuntimeError, match="does not load as it was written"):
        convert(**published)
    assert not published["output"].parent.exists()


# ---------------------------------------------------------------------- gene dictionaries


def test_the_gene_vocabulary_is_in_the_order_of_the_ids(dictionaries):
    # Ids in another order, <cls> named, a gene without a median, one without a name, one with three, an unknown one.
    ids = {"<cls>": 42, "<mask>": 1} | {gene: 43 - row for row, gene in enumerate(GENES, 2)} | {"<pad>": 0}
    dictionaries["token_dictionary"].write_bytes(pickle.dumps(ids))
    change_dictionary(dictionaries["gene_medians"], lambda medians: medians.pop(GENES[3]))
    names = {"": GENES[0], "GENE1": GENES[0], "A": GENES[0], "B": GENES[0], "GENE3": GENES[2], "OLD": "ENSG99"}
    dictionaries["gene_names"].write_bytes(pickle.dumps(names))
    vocabulary = read_gene_vocabulary(**dictionaries)
    assert vocabulary["ensembl_ids"] == GENES[::-1]
    expected = [median if gene != 3 else None for gene, median in enumerate(MEDIANS)]
    assert vocabulary["medians"] == expected[::-1]
    assert vocabulary["names"][-4:] == [GENES[3], "GENE3", GENES[1], "GENE1|A|B"]
    assert len(LangCellFeatureExtractor(vocabulary)) == 43
    json.dumps(vocabulary)  # Python's numbers, not numpy's.


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("median_type", ["float", "f2", "f4", "f8", "u1", "i8", "bool"])
def test_every_protocol_and_number_is_read(dictionaries, protocol, median_type):
    numbers = [1, 2, 3, *[1] * (len(GENES) - 3)]
    scalars = [float(n) if median_type == "float" else np.array(n).astype(median_type)[()] for n in numbers]
    dictionary = dict(zip(GENES, scalars, strict=True))
    written = pickle.dumps(dictionary, protocol=protocol)
    dictionaries["gene_medians"].write_bytes(written)
    if median_type == "bool":
        with pytest.raises(InputError, match="wrong kind"):
            read_gene_vocabulary(**dictionaries)
        return
    assert read_gene_vocabulary(**dictionaries)["medians"] == numbers
    # Older numpy named the module otherwise; where names are lines, one can be put for the other.
    if protocol < 4 and median_type != "float":
        assert b"core.multiarray\nscalar\n" in written
        dictionaries["gene_medians"].write_bytes(written.replace(b"numpy._core", b"numpy.core"))
        assert read_gene_vocabulary(**dictionaries)["medians"] == numbers


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("token_dictionary", lambda d: d.pop(GENES[5]), "ids are not 0 to 40, each once"),
        ("token_dictionary", lambda d: d.update({GENES[5]: 3}), "ids are not 0 to 41"),
        ("token_dictionary", lambda d: d.update({GENES[5]: 7.0}), "'ENSG00000000006' is of the wrong kind"),
        ("token_dictionary", lambda d: d.update({"<pad>": 1, "<mask>": 0}), "not <pad> and <mask>"),
        ("token_dictionary", lambda d: d.update({"<cls>": 2, GENES[0]: 42}), "'<cls>'.*where genes are expected"),
        ("token_dictionary", lambda d: [d.pop(gene) for gene in GENES], "nothing where genes are expected"),
        ("token_dictionary", lambda d: d.clear(), "does not hold a dict with entries"),
        ("gene_medians", lambda d: d.update({GENES[5]: 0.0}), "finite and positive.*ENSG00000000006"),
        ("gene_medians", lambda d: d.update({GENES[5]: -1.0}), "finite and positive"),
        ("gene_medians", lambda d: d.update({GENES[5]: np.nan}), "finite and positive"),
        ("gene_medians", lambda d: d.update({GENES[5]: np.inf}), "finite and positive"),
        ("gene_medians", lambda d: d.update({GENES[5]: 10**400}), "finite and positive"),
        ("gene_medians", lambda d: d.update({GENES[5]: "1.0"}), "wrong kind"),
        ("gene_medians", lambda d: d.update({GENES[5]: None}), "wrong kind"),
        ("gene_medians", lambda d: [d.clear(), d.update(ENSG1=1.0)], "a median for none of the genes"),
        ("gene_names", lambda d: d.update(SYMBOL=3), "wrong kind"),
        ("gene_names", lambda d: d.update({"A|B": GENES[0]}), "no '|'"),
    ],
)
def test_dictionaries_that_do_not_fit(dictionaries, name, change, message):
    change_dictionary(dictionaries[name], change)
    assert f"{name}.pkl" in refused(dictionaries, message)


class MakeFolder:
    """Pickles to a call of `os.mkdir`."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


class StateSetter:
    """Its unpickling leaves a trace by `__setstate__`."""

    def __setstate__(self, path):
        os.mkdir(path)


def line(text: str) -> bytes:
    return text.encode() + b"\n"


def string(text: str) -> bytes:
    return b"X" + len(text.encode()).to_bytes(4, "little") + text.encode()


def stack_global(module: str, name: str) -> bytes:
    return string(module) + string(name) + b"\x93"


MODULE = __name__
MKDIR, SCALAR = b"cos\nmkdir\n", b"cnumpy.core.multiarray\nscalar\n"
DTYPE = b"cnumpy\ndtype\n" + string("f8") + b"\x89\x88\x87R"
#: Pickles that make the folder `%s` when `pickle.loads` reads them, as values of a dict.
LIVE = {
    "REDUCE": lambda path: MKDIR + string(path) + b"\x85R",
    "STACK_GLOBAL": lambda path: stack_global("os", "mkdir") + string(path) + b"\x85R",
    "dotted name": lambda path: stack_global("shutil", "os.mkdir") + string(path) + b"\x85R",
    "INST": lambda path: b"(" + string(path) + b"ios\nmkdir\n",
    "OBJ": lambda path: b"(" + MKDIR + string(path) + b"o",
    "EXT1": lambda path: b"\x82\xf0" + string(path) + b"\x85R",
    "EXT2": lambda path: b"\x83\xf0\x00" + string(path) + b"\x85R",
    "EXT4": lambda path: b"\x84\xf0\x00\x00\x00" + string(path) + b"\x85R",
    "NEWOBJ and BUILD": lambda path: b"c" + line(MODULE) + b"StateSetter\n)\x81" + string(path) + b"b",
    "getattr chain": lambda path: (
        (b"cbuiltins\ngetattr\ncbuiltins\n__import__\n" + string("os") + b"\x85R" + string("mkdir") + b"\x86R")
        + string(path)
        + b"\x85R"
    ),
    "eval": lambda path: b"cbuiltins\neval\n" + string(f"__import__('os').mkdir({path!r})") + b"\x85R",
    "before the dict": lambda path: MKDIR + string(path) + b"\x85R0K\x01",
}


def as_dictionary(value: bytes) -> bytes:
    return b"\x80\x04}" + string(GENES[0]) + value + b"s."


@pytest.mark.parametrize(
    ("attack", "name"),
    [*((attack, "gene_medians") for attack in LIVE), ("REDUCE", "token_dictionary"), ("REDUCE", "gene_names")],
)
def test_a_pickle_that_runs_code_is_refused_and_runs_nothing(dictionaries, tmp_path, attack, name):
    marker = tmp_path / "marker"
    data = as_dictionary(LIVE[attack](str(marker)))
    copyreg.add_extension("os", "mkdir", 0xF0)
    try:
        pickle.loads(data)
        marker.rmdir()  # The attack is live, and extension codes are in pickle's cache now.
        dictionaries[name].write_bytes(data)
        message = refused(dictionaries, f"{name}.pkl holds .* Nothing in it was run")
    finally:
        copyreg.remove_extension("os", "mkdir", 0xF0)
    assert not marker.exists()
    if attack in ("REDUCE", "STACK_GLOBAL", "dotted name"):
        assert "os.mkdir" in message


@pytest.mark.parametrize(
    "value",
    [
        SCALAR,  # the admitted objects themselves
        DTYPE,
        SCALAR + string("f8") + b"\x85R",
        SCALAR + DTYPE + b"C\x08" + bytes(8) + b"0\x85R",
        SCALAR + DTYPE + string("12345678") + b"\x86R",
        SCALAR + b"cnumpy\ndtype\n" + string("O8") + b"\x89\x88\x87RC\x08" + bytes(8) + b"\x86R",
        SCALAR + b"cnumpy\ndtype\n" + string("V8") + b"\x89\x88\x87RC\x08" + bytes(8) + b"\x86R",
        SCALAR + b"cnumpy\ndtype\n" + string("f8,f8") + b"\x89\x88\x87RC\x10" + bytes(16) + b"\x86R",
        b"cnumpy\ndtype\n" + b"cnumpy.core.multiarray\nscalar\n\x85R",  # a dtype of a global
        b"cnumpy\nndarray\n)R",
        b"cnumpy.core.multiarray\n_reconstruct\n)R",
        stack_global("numpy", "core.multiarray.scalar"),
        stack_global("numpy", "dtype.__class__"),
        stack_global("numpy.core", "multiarray.scalar"),
        stack_global("numpy.core.multiarray", "scalar.__class__"),
        b"K\x01K\x02\x93",  # a global named by numbers
        b"c_codecs\nencode\n" + string("a") + string("rot13") + b"\x86R",
        SCALAR + b"}b",  # BUILD on admitted objects
        SCALAR + b"N}" + string("makes") + string("dtype") + b"s\x86b",
        DTYPE + string("state") + b"b",
        DTYPE + b"(K\x03" + string("<") + string("names") + b"NNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb",
        DTYPE + b"(K\x03" + string("f8,") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb",
        SCALAR + b")\x81",  # NEWOBJ, NEWOBJ_EX
        SCALAR + b")}\x92",
        SCALAR + string("key") + string("value") + b"s",  # SETITEM on what is no dict
        string("persistent") + b"Q",
        b"Ppersistent\n",
        b"]K\x01a",
        b"\x8f",
        b"\x96" + bytes(8),
        b"}K\x01K\x02s",  # keys that are no strings
        b"(K\x01K\x02d",
        b"\x82\x01",
    ],
)
def test_a_pickle_of_more_than_plain_values_is_refused(dictionaries, value):
    dictionaries["gene_medians"].write_bytes(as_dictionary(value))
    refused(dictionaries, "gene_medians.pkl(: .* wrong kind| holds .* Nothing in it was run)")


@pytest.mark.parametrize("payload", [b"", bytes(7), bytes(9), bytes(16)])
def test_a_number_has_its_own_size(dictionaries, payload):
    for order in "<", ">":
        state = b"(K\x03" + string(order) + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        number = b"C\x08" + np.array(2.5, order + "f8").tobytes()
        dictionaries["gene_medians"].write_bytes(as_dictionary(SCALAR + DTYPE + state + number + b"\x86R"))
        assert read_gene_vocabulary(**dictionaries)["medians"][0] == 2.5
    dictionaries["gene_medians"].write_bytes(
        as_dictionary(SCALAR + DTYPE + b"C" + bytes([len(payload)]) + payload + b"\x86R")
    )
    refused(dictionaries, "not a complete pickle")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not a pickle",
        b".",
        b"0.",
        b"}",
        b"N.",
        b"}}.",
        b"u.",
        b"h\x05.",
        b"\x80\x04X\xff\xff\xff\x7f",
        b"\x80\x04}" + b"r\xff\xff\xff\xff" + b"Na.",
        bytes(range(256)),
        pickle.dumps(["a"]),
        pickle.dumps({GENES[0]: {"deep": 1.0}}),
        pickle.dumps({1: 1.0}),
        pickle.dumps({1: 1.0, 2: 2.0}),
        pickle.dumps({(): 1.0}, protocol=0),
    ],
)
def test_other_pickles_and_damaged_ones_are_refused(dictionaries, data):
    dictionaries["gene_medians"].write_bytes(data)
    refused(dictionaries, "gene_medians.pkl(: .* wrong kind| does not hold| holds (the op|a con)| is not a complete)")


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9, 0.999])
def test_truncated_dictionaries(dictionaries, kept):
    for name in ("token_dictionary", "gene_medians", "gene_names"):
        whole = dictionaries[name].read_bytes()
        dictionaries[name].write_bytes(whole[: int(len(whole) * kept)])
        assert f"{name}.pkl" in refused(dictionaries, "not a complete pickle")
        dictionaries[name].write_bytes(whole)


def test_the_published_dictionaries(shared):
    folder = shared / "reference/geneformer"
    names = ("token_dictionary", "gene_median_dictionary", "gene_name_id_dict")
    paths = [folder / f"{name}.pkl" for name in names]
    vocabulary = read_gene_vocabulary(*paths)
    tokens, medians, symbols = (pickle.loads(path.read_bytes()) for path in paths)  # They are the project's own.
    assert vocabulary["ensembl_ids"] == sorted(tokens, key=tokens.get)[2:]
    assert vocabulary["medians"] == [medians[gene] for gene in vocabulary["ensembl_ids"]]
    assert len(LangCellFeatureExtractor(vocabulary)) == 25_427
    named = dict(zip(vocabulary["names"], vocabulary["ensembl_ids"], strict=True))
    assert all(named[symbol] == symbols[symbol] for symbol in ("CD3E", "MS4A1", "NKG7", "LYZ"))

# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Saved folders where the package is not installed: all classes load from their own code, with the same outputs."""

import json
from pathlib import Path

import pytest
import scipy.sparse as sp
import torch
from safetensors.torch import load_file

from modeling_langcell import (
    LangCellCellModel,
    LangCellForMaskedLM,
    LangCellForPreTraining,
    LangCellForSequenceClassification,
    LangCellModel,
    LangCellTextModel,
)
from tests.support.commands import run_without_the_package
from tests.support.tiny import GENES, tiny_config

TEXTS = ["cell type : nk .", "monocyte"]

#: A session without the package: reads the folders in argv[1], writes their outputs and saves them again in argv[2].
SESSION = """
import json, sys
from pathlib import Path


class NotInstalled:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "modeling_langcell":
            raise ModuleNotFoundError(f"No module named {name!r}")


sys.meta_path.insert(0, NotInstalled())
try:
    import modeling_langcell
except ModuleNotFoundError:
    pass
else:
    sys.exit("The package is importable: this session would prove nothing.")

import scipy.sparse as sp
import torch
import transformers
from safetensors.torch import save_file
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForPreTraining,
    AutoModelForSequenceClassification,
    AutoProcessor,
)

source, target = Path(sys.argv[1]), Path(sys.argv[2])
given = json.loads((source / "given.json").read_text())
names, refused, outputs = {}, {}, {}


def load(auto, folder):
    key = f"{folder} {auto.__name__}"
    try:
        auto.from_pretrained(source / folder)
    except ValueError as error:
        refused[key] = str(error)
    loaded = auto.from_pretrained(source / folder, trust_remote_code=True)
    names[key] = [type(loaded).__module__, type(loaded).__name__]
    return loaded


counts = sp.load_npz(source / "counts.npz")
processor = load(AutoProcessor, "joint")
extractor = load(AutoFeatureExtractor, "joint")
batch = processor(cells=counts, gene_ids=given["genes"], text=given["texts"], return_tensors="pt")
cells = extractor(counts, gene_ids=given["genes"], return_tensors="pt")
outputs["cell_input_ids"] = cells["cell_input_ids"]
outputs["processor cell_input_ids"] = batch["cell_input_ids"]
cell_inputs = {"input_ids": batch["cell_input_ids"], "attention_mask": batch["cell_attention_mask"]}
text_inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}

models = {
    "joint": load(AutoModel, "joint"),
    "cell": load(AutoModel, "cell"),
    "text": load(AutoModel, "text"),
    "masked": load(AutoModelForMaskedLM, "masked"),
    "classifier": load(AutoModelForSequenceClassification, "classifier"),
    "pretraining": load(AutoModelForPreTraining, "pretraining"),
}
for folder in models:
    load(AutoConfig, folder)
with torch.no_grad():
    out = models["joint"](**batch, return_matching=True)
    outputs |= {name: out[name] for name in ("cell_embeds", "text_embeds", "matching_logits")}
    outputs["cell"] = models["cell"](**cell_inputs).pooler_output
    outputs["text"] = models["text"](**text_inputs).pooler_output
    outputs["masked"] = models["masked"](**cell_inputs).logits
    outputs["classifier"] = models["classifier"](**cell_inputs).logits
    outputs["pretraining"] = models["pretraining"].get_text_features(**text_inputs).pooler_output
    for folder in ("cell", "joint"):
        for auto in (AutoModelForMaskedLM, AutoModelForSequenceClassification):
            head = load(auto, folder)
            outputs[f"{folder} {auto.__name__}"] = head.cell_model(**cell_inputs).pooler_output

for folder, model in models.items():
    model.save_pretrained(target / folder)
processor.save_pretrained(target / "joint")
save_file({name: tensor.contiguous() for name, tensor in outputs.items()}, target / "outputs.safetensors")
(target / "report.json").write_text(json.dumps({"names": names, "refused": refused}))
"""


def session(source: Path, target: Path, home: Path) -> tuple[dict, dict]:
    """Runs SESSION in a process of its own with empty caches; returns its report and its outputs."""
    for folder in (target, home):
        folder.mkdir()
    # Its stdin is empty: nobody answers "do you wish to run the custom code?".
    done = run_without_the_package("-I", "-c", SESSION, source, target, cwd=home, cache=home)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads((target / "report.json").read_text()), load_file(target / "outputs.safetensors")


@pytest.fixture(scope="module")
def models() -> dict:
    torch.manual_seed(0)
    config = tiny_config(text_config={"pooling": "mean"})
    joint, pretraining = LangCellModel(config), LangCellForPreTraining(tiny_config())
    return {
        "joint": joint.eval(),
        "cell": LangCellCellModel(tiny_config().cell_config).eval(),
        "text": LangCellTextModel(tiny_config().text_config).eval(),
        "masked": LangCellForMaskedLM(tiny_config().cell_config).eval(),
        "classifier": LangCellForSequenceClassification(tiny_config(cell_config={"num_labels": 3}).cell_config).eval(),
        "pretraining": pretraining.eval(),
    }


@pytest.fixture(scope="module")
def counts() -> sp.csr_matrix:
    counts = sp.random(5, len(GENES), density=0.4, format="csr", random_state=0)
    counts.data = (counts.data * 20).round() + 1
    return counts


@pytest.fixture(scope="module")
def saved(models, counts, tiny_processor, tmp_path_factory) -> Path:
    """Folders as the package saves them."""
    folder = tmp_path_factory.mktemp("saved")
    for name, model in models.items():
        model.save_pretrained(folder / name)
    tiny_processor.save_pretrained(folder / "joint")
    return give(folder, counts)


def give(folder: Path, counts) -> Path:
    sp.save_npz(folder / "counts.npz", counts)
    (folder / "given.json").write_text(json.dumps({"genes": GENES, "texts": TEXTS}))
    return folder


@pytest.fixture(scope="module")
def first(saved, tmp_path_factory):
    """A session on what the package saved: the folder it saved in turn, its report, its outputs."""
    folder = tmp_path_factory.mktemp("first")
    return folder / "saved", *session(saved, folder / "saved", folder / "home")


@pytest.fixture(scope="module")
def second(first, counts, tmp_path_factory):
    """A session on what the first one saved."""
    folder = tmp_path_factory.mktemp("second")
    return folder / "saved", *session(give(first[0], counts), folder / "saved", folder / "home")


@pytest.fixture(params=["first", "second"])
def remote(request):
    return request.getfixturevalue(request.param)


CLASSES = {
    "joint AutoProcessor": ("processing_langcell", "LangCellProcessor"),
    "joint AutoFeatureExtractor": ("feature_extraction_langcell", "LangCellFeatureExtractor"),
    "joint AutoModel": ("modeling_langcell", "LangCellModel"),
    "cell AutoModel": ("modeling_langcell", "LangCellCellModel"),
    "cell AutoModelForMaskedLM": ("modeling_langcell", "LangCellForMaskedLM"),
    "cell AutoModelForSequenceClassification": ("modeling_langcell", "LangCellForSequenceClassification"),
    "joint AutoModelForMaskedLM": ("modeling_langcell", "LangCellForMaskedLM"),
    "joint AutoModelForSequenceClassification": ("modeling_langcell", "LangCellForSequenceClassification"),
    "text AutoModel": ("modeling_langcell", "LangCellTextModel"),
    "masked AutoModelForMaskedLM": ("modeling_langcell", "LangCellForMaskedLM"),
    "classifier AutoModelForSequenceClassification": ("modeling_langcell", "LangCellForSequenceClassification"),
    "pretraining AutoModelForPreTraining": ("modeling_langcell", "LangCellForPreTraining"),
    "joint AutoConfig": ("configuration_langcell", "LangCellConfig"),
    "pretraining AutoConfig": ("configuration_langcell", "LangCellConfig"),
    "cell AutoConfig": ("configuration_langcell", "LangCellCellConfig"),
    "masked AutoConfig": ("configuration_langcell", "LangCellCellConfig"),
    "classifier AutoConfig": ("configuration_langcell", "LangCellCellConfig"),
    "text AutoConfig": ("configuration_langcell", "LangCellTextConfig"),
}


class TestWithoutThePackage:
    @pytest.mark.long
    def test_classes(self, remote):
        names = remote[1]["names"]
        assert names.keys() == CLASSES.keys()
        for key, (module, name) in names.items():
            assert module.startswith("transformers_modules."), key
            assert (module.rpartition(".")[2], name) == CLASSES[key]

    def test_trust_is_asked_for(self, remote):
        refused = remote[1]["refused"]
        assert refused.keys() == CLASSES.keys()
        assert all("trust_remote_code=True" in message for message in refused.values())

    def test_outputs(self, remote, models, counts, tiny_processor):
        outputs = remote[2]
        batch = tiny_processor(cells=counts, gene_ids=GENES, text=TEXTS, return_tensors="pt")
        assert torch.equal(outputs.pop("cell_input_ids"), batch["cell_input_ids"])
        assert torch.equal(outputs.pop("processor cell_input_ids"), batch["cell_input_ids"])
        cells = {"input_ids": batch["cell_input_ids"], "attention_mask": batch["cell_attention_mask"]}
        texts = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
        with torch.no_grad():
            joint = models["joint"](**batch, return_matching=True)
            expected = {name: joint[name] for name in ("cell_embeds", "text_embeds", "matching_logits")}
            for tower, model in (("cell", models["cell"]), ("joint", models["joint"].cell_model)):
                heads = (f"{tower} AutoModelForMaskedLM", f"{tower} AutoModelForSequenceClassification")
                expected |= dict.fromkeys(heads, model(**cells).pooler_output)
            expected["cell"] = models["cell"](**cells).pooler_output
            expected["text"] = models["text"](**texts).pooler_output
            expected["masked"] = models["masked"](**cells).logits
            expected["classifier"] = models["classifier"](**cells).logits
            expected["pretraining"] = models["pretraining"].get_text_features(**texts).pooler_output
        assert outputs.keys() == expected.keys()
        for name, output in outputs.items():
            torch.testing.assert_close(output, expected[name], atol=1e-6, rtol=0, msg=lambda m, n=name: n + m)

    def test_saved_again(self, remote, models):
        for name, model in models.items():
            again = type(model).from_pretrained(remote[0] / name)
            weights = again.state_dict()
            assert weights.keys() == model.state_dict().keys()
            assert all(torch.equal(weights[key], weight) for key, weight in model.state_dict().items())

    def test_auto_maps(self, remote, saved, models):
        for name in models:
            maps = [json.loads((root / name / "config.json").read_text())["auto_map"] for root in (saved, remote[0])]
            assert maps[0] == maps[1]

    def test_only_code_of_the_family_travels(self, saved, remote):
        code = {"configuration_langcell.py", "modeling_langcell.py", "objectives.py", "packed_langcell.py"}
        cells = {"feature_extraction_langcell.py", "processing_langcell.py", "pipeline_langcell.py"}
        cells |= {
            "count_matrix.py",
            "count_sources.py",
            "count_values.py",
            "gene_columns.py",
            "gene_matching.py",
            "gene_names.py",
            "marker_genes.py",
            "ranking.py",
        }
        cells |= {"token_budget.py", "zero_shot.py", "errors.py", "prompts.py"}
        for root in (saved, remote[0]):
            assert {path.name for path in (root / "joint").glob("*.py")} == code | cells
            assert {path.name for path in (root / "cell").glob("*.py")} == code

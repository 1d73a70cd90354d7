# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Registration with the Auto classes: silent, light, and complete in whatever order modules are imported."""

import json
import subprocess
import sys

import pytest

from tests.support.paths import REPOSITORY

#: Statements that a fresh process runs before it asks every Auto class for the family.
ORDERS = {
    "the package first": "import modeling_langcell; from transformers import AutoConfig, AutoModel, pipeline",
    "the package last": "from transformers import AutoConfig, AutoModel, pipeline; import modeling_langcell",
    "the package between": "from transformers import AutoModel; import modeling_langcell, transformers.pipelines",
    "only AutoConfig before": "from transformers import AutoConfig; import modeling_langcell",
    "AutoProcessor first": "import modeling_langcell; from transformers import AutoProcessor",
    "AutoFeatureExtractor first": "import modeling_langcell; from transformers import AutoFeatureExtractor",
    "pipeline first": "import modeling_langcell; from transformers import pipeline",
    "a model first": "from modeling_langcell import LangCellModel",
    "a config first": "from modeling_langcell import LangCellConfig",
    "the feature extractor first": "from modeling_langcell import LangCellFeatureExtractor",
    "the pipeline's class first": (
        "from modeling_langcell.model.pipeline_langcell import ZeroShotCellAnnotationPipeline"
    ),
    "the kernels first": "import modeling_langcell.kernels",
    "specs are looked at first": """
import modeling_langcell
from importlib.util import find_spec
for name in ("transformers.pipelines", "modeling_langcell.model.modeling_langcell"):
    assert "import" in find_spec(name).loader.get_source(name)
""",
    "modules are reloaded": """
import importlib, modeling_langcell
from transformers import AutoConfig
importlib.reload(modeling_langcell)
importlib.reload(sys.modules["transformers.models.auto.configuration_auto"])
from transformers.models.auto.configuration_auto import AutoConfig
AutoConfig.for_model("langcell")
""",
    "the family cannot be imported at first": """
import modeling_langcell
sys.modules["modeling_langcell.model.objectives"] = None
try:
    from transformers import AutoModel
except ImportError:
    del sys.modules["modeling_langcell.model.objectives"]
else:
    raise AssertionError("nothing was registered, and nobody was told")
""",
    "another finder whose loader is itself": """
import importlib.machinery

class Finder(importlib.machinery.SourceFileLoader):
    def __init__(self): pass
    def find_spec(self, name, path=None, target=None):
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and name.startswith("modeling_langcell."):
            spec.loader = self
        return spec
    def exec_module(self, module):
        exec(compile(open(module.__spec__.origin).read(), module.__spec__.origin, "exec"), module.__dict__)

sys.meta_path.insert(0, Finder())
import modeling_langcell
from transformers import AutoModel
assert type(sys.modules["modeling_langcell.model.modeling_langcell"].__loader__) is Finder
""",
    "many threads at once": """
import importlib, threading
import modeling_langcell
names = ["AutoModel", "AutoConfig", "AutoProcessor", "AutoFeatureExtractor", "pipeline", "AutoModelForMaskedLM"]
failures = []

def look(module, name):
    try:
        getattr(importlib.import_module(module), name)
    except BaseException as error:
        failures.append(error)

threads = [threading.Thread(target=look, args=("transformers", name)) for name in names]
threads += [threading.Thread(target=look, args=("modeling_langcell", "LangCellModel"))]
for thread in threads: thread.start()
for thread in threads: thread.join()
assert not failures, failures
""",
}

#: A session that imports what costs most once, and forks for every order.
SESSION = """
import json, os, sys, traceback
orders = json.load(sys.stdin)


def fork(run):
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        said = ""
        try:
            run()
        except BaseException:
            said = traceback.format_exc()
        os.write(writer, said.encode()[-4000:])
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        said = pipe.read()
    return said if os.waitpid(child, 0)[1] == 0 else "it died: " + said


def alone():
    import modeling_langcell
    heavy = {"torch", "transformers", "anndata", "scanpy", "typer", "matplotlib", "cellxgene_ontology_guide"}
    assert not heavy & sys.modules.keys(), heavy & sys.modules.keys()


def everything_knows_the_family():
    import modeling_langcell as langcell
    from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, AutoModelForPreTraining
    from transformers import AutoModelForSequenceClassification
    from transformers.models.auto.feature_extraction_auto import FEATURE_EXTRACTOR_MAPPING
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
    from transformers.pipelines import PIPELINE_REGISTRY

    joint, cell, text = langcell.LangCellConfig, langcell.LangCellCellConfig, langcell.LangCellTextConfig
    for config in (joint, cell, text):
        assert type(AutoConfig.for_model(config.model_type)) is config, config
    for auto, config, model in (
        (AutoModel, joint, langcell.LangCellModel),
        (AutoModel, cell, langcell.LangCellCellModel),
        (AutoModel, text, langcell.LangCellTextModel),
        (AutoModelForMaskedLM, cell, langcell.LangCellForMaskedLM),
        (AutoModelForSequenceClassification, cell, langcell.LangCellForSequenceClassification),
        (AutoModelForMaskedLM, joint, langcell.LangCellForMaskedLMOfJoint),
        (AutoModelForSequenceClassification, joint, langcell.LangCellForSequenceClassificationOfJoint),
        (AutoModelForPreTraining, joint, langcell.LangCellForPreTraining),
    ):
        assert auto._model_mapping[config] is model, (auto, model)
    assert FEATURE_EXTRACTOR_MAPPING[joint] is FEATURE_EXTRACTOR_MAPPING[cell] is langcell.LangCellFeatureExtractor
    assert PROCESSOR_MAPPING[joint] is langcell.LangCellProcessor
    task = PIPELINE_REGISTRY.check_task("zero-shot-cell-annotation")[1]
    assert task["impl"] is langcell.ZeroShotCellAnnotationPipeline
    assert type(AutoConfig.from_pretrained("langcell-mini")) is joint
    from modeling_langcell.model.packed_langcell import kernels
    assert kernels.linear and kernels.attention


def order(statements):
    exec(statements, {"sys": sys})
    everything_knows_the_family()


found = {"alone": fork(alone)}
import huggingface_hub.dataclasses, safetensors.torch, scipy.optimize, scipy.sparse, tokenizers
import torch, torch._dynamo, torch.distributed.tensor
import transformers
for name in ("configuration", "modeling", "feature_extraction", "processing"):
    assert f"transformers.models.auto.{name}_auto" not in sys.modules, name
assert not {"transformers.pipelines", "modeling_langcell"} & sys.modules.keys()
found |= {name: fork(lambda: order(statements)) for name, statements in orders.items()}
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def session():
    return subprocess.run(
        [sys.executable, "-c", SESSION],
        input=json.dumps(ORDERS),
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.mark.long
@pytest.mark.parametrize("order", ["alone", *ORDERS])
def test_import(session, order):
    """Importing the package alone imports nothing heavy; after any order, all Auto classes know the family."""
    assert session.returncode == 0, session.stderr[-4000:]
    assert not (said := json.loads(session.stdout)[order]), said


def test_import_is_silent(session):
    assert session.stdout.count("\n") == 1
    assert session.stderr == ""


PEFT = """
import json, sys
{imports}
import modeling_langcell
{first} = "peft" not in sys.modules
import peft, peft.auto, peft.utils.constants
mapping = peft.utils.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
assert mapping["langcell"] == mapping["langcell_cell"] == mapping["bert"]
assert mapping["langcell_text"] == ["attention.self." + name for name in mapping["bert"]]
assert "modeling_langcell" in peft.auto.get_default_import_allowlist()
assert {expected}
"""


@pytest.mark.long
@pytest.mark.parametrize(
    ("imports", "expected"), [("", "light"), ("import peft", "not light")], ids=["peft later", "peft before"]
)
def test_peft(imports, expected):
    """peft knows the family's modules whenever it is imported, and the package does not import it."""
    code = PEFT.format(imports=imports, first="light", expected=expected)
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]

# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""
LangCell: cells and natural language in one space. Importing registers the family with transformers' Auto classes.

```python
>>> import modeling_langcell
>>> from transformers import AutoConfig
>>> type(AutoConfig.for_model("langcell")).__name__
'LangCellConfig'

```
"""

from importlib import import_module
from typing import TYPE_CHECKING

from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForPreTraining,
    AutoModelForSequenceClassification,
    AutoProcessor,
)
from transformers.pipelines import PIPELINE_REGISTRY

from .model.configuration_langcell import PIPELINE_TASK, LangCellCellConfig, LangCellConfig, LangCellTextConfig
from .model.errors import InputError
from .model.feature_extraction_langcell import LangCellFeatureExtractor
from .model.modeling_langcell import (
    LangCellCellModel,
    LangCellForMaskedLM,
    LangCellForPreTraining,
    LangCellForSequenceClassification,
    LangCellModel,
    LangCellTextModel,
)
from .model.pipeline_langcell import ZeroShotCellAnnotationPipeline
from .model.processing_langcell import LangCellProcessor

if TYPE_CHECKING:
    from .annotation.annotator import LangCellAnnotator

__version__ = "0.1.0"

for _config in (LangCellConfig, LangCellCellConfig, LangCellTextConfig):
    AutoConfig.register(_config.model_type, _config)
AutoFeatureExtractor.register(LangCellConfig, LangCellFeatureExtractor)
AutoFeatureExtractor.register(LangCellCellConfig, LangCellFeatureExtractor)
AutoProcessor.register(LangCellConfig, LangCellProcessor)
for _auto, _model in (
    (AutoModel, LangCellModel),
    (AutoModel, LangCellCellModel),
    (AutoModel, LangCellTextModel),
    (AutoModelForMaskedLM, LangCellForMaskedLM),
    (AutoModelForSequenceClassification, LangCellForSequenceClassification),
    (AutoModelForPreTraining, LangCellForPreTraining),
):
    _auto.register(_model.config_class, _model)
    # What is saved carries its code: it loads with trust_remote_code=True where this package is not installed.
    _model.register_for_auto_class(_auto.__name__)
for _config in (LangCellConfig, LangCellCellConfig, LangCellTextConfig):
    _config.register_for_auto_class()
LangCellFeatureExtractor.register_for_auto_class()
LangCellProcessor.register_for_auto_class()
PIPELINE_REGISTRY.register_pipeline(PIPELINE_TASK, ZeroShotCellAnnotationPipeline, pt_model=AutoModel)


def __getattr__(name: str):
    # Annotation needs anndata and an ontology; models alone do not.
    if name == "LangCellAnnotator":
        return import_module(".annotation", __name__).LangCellAnnotator
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "InputError",
    "LangCellAnnotator",
    "LangCellCellConfig",
    "LangCellCellModel",
    "LangCellConfig",
    "LangCellFeatureExtractor",
    "LangCellForMaskedLM",
    "LangCellForPreTraining",
    "LangCellForSequenceClassification",
    "LangCellModel",
    "LangCellProcessor",
    "LangCellTextConfig",
    "LangCellTextModel",
    "ZeroShotCellAnnotationPipeline",
]

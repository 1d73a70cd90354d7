# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""
Registers the family with transformers' Auto classes.

transformers registers classes, and importing ours takes seconds, most of them torch's. So each registration waits until
the module of its Auto class is imported, which takes those seconds anyway.
"""

import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import modeling_langcell as langcell  # Its names are imported when they are asked for.


def register() -> None:
    """Registers with those Auto classes that are imported already, and with the others as soon as they are."""
    waiting = {name: action for name, action in _REGISTRATIONS.items() if name not in sys.modules}
    sys.meta_path.insert(0, _ImportWatcher(waiting))
    for name in _REGISTRATIONS.keys() - waiting.keys():
        _REGISTRATIONS[name](sys.modules[name])


class _ImportWatcher(MetaPathFinder):
    """
    Finds modules as the other finders do, and acts on some of them once they are imported.

    Args:
        waiting: What to do with a module, by its full name.
    """

    def __init__(self, waiting: dict[str, Callable[[Any], None]]):
        self.waiting = waiting

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        action = self.waiting.pop(fullname, None)  # Taken out first: finding the module comes by here again.
        if action is None:
            return None
        spec = importlib.util.find_spec(fullname)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_act(module: ModuleType) -> None:
            execute(module)
            action(module)

        setattr(spec.loader, "exec_module", execute_and_act)  # noqa: B010 - a method of this one loader
        return spec


def _register_configs(auto: Any) -> None:
    for config in (langcell.LangCellConfig, langcell.LangCellCellConfig, langcell.LangCellTextConfig):
        auto.AutoConfig.register(config.model_type, config)


def _register_models(auto: Any) -> None:
    for auto_class, model in (
        (auto.AutoModel, langcell.LangCellModel),
        (auto.AutoModel, langcell.LangCellCellModel),
        (auto.AutoModel, langcell.LangCellTextModel),
        (auto.AutoModelForMaskedLM, langcell.LangCellForMaskedLM),
        (auto.AutoModelForSequenceClassification, langcell.LangCellForSequenceClassification),
        (auto.AutoModelForPreTraining, langcell.LangCellForPreTraining),
    ):
        auto_class.register(model.config_class, model)


def _register_feature_extractor(auto: Any) -> None:
    for config in (langcell.LangCellConfig, langcell.LangCellCellConfig):
        auto.AutoFeatureExtractor.register(config, langcell.LangCellFeatureExtractor)


def _register_processor(auto: Any) -> None:
    auto.AutoProcessor.register(langcell.LangCellConfig, langcell.LangCellProcessor)


def _register_pipeline(pipelines: Any) -> None:
    pipeline = langcell.ZeroShotCellAnnotationPipeline
    pipelines.PIPELINE_REGISTRY.register_pipeline(pipeline.task_name, pipeline, pt_model=pipelines.AutoModel)


_REGISTRATIONS: dict[str, Callable[[Any], None]] = {
    "transformers.models.auto.configuration_auto": _register_configs,
    "transformers.models.auto.modeling_auto": _register_models,
    "transformers.models.auto.feature_extraction_auto": _register_feature_extractor,
    "transformers.models.auto.processing_auto": _register_processor,
    "transformers.pipelines": _register_pipeline,
}

__all__ = ["register"]

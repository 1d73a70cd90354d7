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
from typing import Any, NamedTuple

import modeling_langcell as langcell  # Its names are imported when they are asked for.


def register() -> None:
    """Registers with those Auto classes that are imported already, and with the others as soon as they are."""
    watcher = _ImportWatcher(_REGISTRATIONS)
    sys.meta_path.insert(0, watcher)
    watcher.register()


class _Registration(NamedTuple):
    """
    What to register where.

    Args:
        auto: transformers' module with the Auto class.
        ours: Our modules with what is registered.
        act: Registers it, given the module `auto`.
    """

    auto: str
    ours: tuple[str, ...]
    act: Callable[[Any], None]


class _ImportWatcher(MetaPathFinder):
    """Leaves finding modules to the other finders, and registers as soon as the modules that it takes are imported."""

    def __init__(self, registrations: Sequence[_Registration]):
        self.waiting = list(registrations)
        self.watched = {name for registration in registrations for name in (registration.auto, *registration.ours)}
        self.imported = self.watched & sys.modules.keys()
        self.watched -= self.imported

    def register(self) -> None:
        """
        Carries out what can be. One of our modules that is only half imported asked for the Auto class itself, by way
        of others: the registration then waits for it too.
        """
        for registration in [*self.waiting]:
            half_imported = set(registration.ours) & sys.modules.keys() - self.imported
            if registration.auto in self.imported and not half_imported and registration in self.waiting:
                self.waiting.remove(registration)
                registration.act(sys.modules[registration.auto])

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in self.watched:
            return None
        self.watched.remove(fullname)  # First: finding the module comes by here again.
        spec = importlib.util.find_spec(fullname)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_register(module: ModuleType) -> None:
            execute(module)
            self.imported.add(fullname)
            self.register()

        setattr(spec.loader, "exec_module", execute_and_register)  # noqa: B010 - a method of this one loader
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


_CONFIGS, _MODELS = f"{__package__}.model.configuration_langcell", f"{__package__}.model.modeling_langcell"
_CELLS, _TEXTS = f"{__package__}.model.feature_extraction_langcell", f"{__package__}.model.processing_langcell"
_PIPELINE = f"{__package__}.model.pipeline_langcell"
_REGISTRATIONS = (
    _Registration("transformers.models.auto.configuration_auto", (_CONFIGS,), _register_configs),
    _Registration("transformers.models.auto.modeling_auto", (_MODELS,), _register_models),
    _Registration("transformers.models.auto.feature_extraction_auto", (_CONFIGS, _CELLS), _register_feature_extractor),
    _Registration("transformers.models.auto.processing_auto", (_CONFIGS, _TEXTS), _register_processor),
    _Registration("transformers.pipelines", (_PIPELINE,), _register_pipeline),
)

__all__ = ["register"]

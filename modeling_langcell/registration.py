# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""
Registers the family with transformers' Auto classes and pipelines, and with peft, and lets transformers take the
names of the package's checkpoints: `AutoModel.from_pretrained("langcell-mini")`.

transformers registers classes, and importing ours takes seconds, mostly for torch. Each registration therefore waits
until the module of its Auto class is imported, which takes those seconds anyway.
"""

import sys
from collections.abc import Callable, Sequence
from functools import wraps
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import modeling_langcell as langcell  # Its names are imported when they are first used.

#: Beginnings of the names of the modules that registering needs.
_FAMILY = (f"{__package__}.model.", f"{__package__}.kernels")


def register() -> None:
    """Registers with the Auto classes that are already imported, and with the others as soon as they are."""
    if _HOOK in sys.meta_path:  # The package is being reloaded.
        return
    sys.meta_path.insert(0, _HOOK)
    for module in _REGISTRATIONS:
        if module in sys.modules:
            import_module(module)  # Waits for another thread that may be importing it.
            _HOOK.after_import(module)


class _RegistrationHook(MetaPathFinder):
    """
    Lets the other finders find the modules of Auto classes and of the family, and registers after they are imported.

    A module of the family may itself import an Auto class by way of others. Registering then would need the family's
    classes while they are half imported, so it waits until no module of the family is being imported, by any thread:
    if two threads each wait for a module of the other, Python gives one of them a half-imported module.

    Attributes:
        due: Modules of Auto classes that are imported, with which the family is not registered yet.
        importing: Modules of the family that are being imported.
    """

    def __init__(self) -> None:
        self.due: set[str] = set()
        self.importing: set[str] = set()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in _REGISTRATIONS and not fullname.startswith(_FAMILY):
            return None
        others = sys.meta_path[sys.meta_path.index(self) + 1 :]  # Earlier finders were already asked.
        specs = (finder.find_spec(fullname, path, target) for finder in others)
        spec = next((spec for spec in specs if spec is not None), None)
        if spec is not None and spec.loader is not None and hasattr(spec.loader, "exec_module"):
            spec.loader = _RegisteringLoader(spec.loader, self)
        return spec

    def after_import(self, module: str) -> None:
        """
        Registers with the modules that are due.

        Raises:
            Exception: The family cannot be imported. The import that led here fails with it.
        """
        if module in _REGISTRATIONS:
            self.due.add(module)
        while self.due and not self.importing:
            try:
                auto = self.due.pop()  # It is removed before registering, which leads here again.
            except KeyError:  # Another thread took the last one.
                return
            if auto not in sys.modules:  # Its import failed; it is due again when the import succeeds.
                continue
            try:
                _REGISTRATIONS[auto](sys.modules[auto])
            except BaseException:
                self.due.add(auto)
                raise


class _RegisteringLoader(Loader):
    """Loads a module with the loader that was found for it, which becomes the module's loader, and then registers."""

    def __init__(self, loader: Loader, hook: _RegistrationHook):
        self._loader, self._hook = loader, hook

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)  # Callers may read source or resources from a spec without importing it.

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        spec = module.__spec__
        assert spec is not None
        module.__loader__ = spec.loader = self._loader
        if spec.name.startswith(_FAMILY):
            self._hook.importing.add(spec.name)
        try:
            self._loader.exec_module(module)
        finally:
            self._hook.importing.discard(spec.name)
        self._hook.after_import(spec.name)


def _register_configs(auto: Any) -> None:
    for config in (langcell.LangCellConfig, langcell.LangCellCellConfig, langcell.LangCellTextConfig):
        auto.AutoConfig.register(config.model_type, config, exist_ok=True)
    _let_names_be_loaded(auto.AutoConfig, only_config=True)


def _register_models(auto: Any) -> None:
    for auto_class, model in (
        (auto.AutoModel, langcell.LangCellModel),
        (auto.AutoModel, langcell.LangCellCellModel),
        (auto.AutoModel, langcell.LangCellTextModel),
        (auto.AutoModelForMaskedLM, langcell.LangCellForMaskedLM),
        (auto.AutoModelForSequenceClassification, langcell.LangCellForSequenceClassification),
        (auto.AutoModelForMaskedLM, langcell.LangCellForMaskedLMOfJoint),
        (auto.AutoModelForSequenceClassification, langcell.LangCellForSequenceClassificationOfJoint),
        (auto.AutoModelForPreTraining, langcell.LangCellForPreTraining),
    ):
        auto_class.register(model.config_class, model, exist_ok=True)
        _let_names_be_loaded(auto_class)


def _register_feature_extractor(auto: Any) -> None:
    for config in (langcell.LangCellConfig, langcell.LangCellCellConfig):
        auto.AutoFeatureExtractor.register(config, langcell.LangCellFeatureExtractor, exist_ok=True)
    _let_names_be_loaded(auto.AutoFeatureExtractor)


def _register_processor(auto: Any) -> None:
    auto.AutoProcessor.register(langcell.LangCellConfig, langcell.LangCellProcessor, exist_ok=True)
    _let_names_be_loaded(auto.AutoProcessor)


def _register_tokenizer(auto: Any) -> None:
    _let_names_be_loaded(auto.AutoTokenizer)


def _register_pipeline(pipelines: Any) -> None:
    pipeline = langcell.ZeroShotCellAnnotationPipeline
    pipelines.PIPELINE_REGISTRY.register_pipeline(pipeline.task_name, pipeline, pt_model=pipelines.AutoModel)
    make = pipelines.pipeline

    @wraps(make)
    def make_by_name(task: Any = None, model: Any = None, *args: Any, **kwargs: Any) -> Any:
        return make(task, _resolve(model), *args, **kwargs)

    pipelines.pipeline = make_by_name


#: Ends of the names of modules, and of those of them that are in a self-attention.
_OF_SELF_ATTENTION = {name: f"attention.self.{name}" for name in ("query", "key", "value")}
_OF_SELF_ATTENTION |= {"output.dense": "attention.output.dense"}


def _register_adapter_targets(constants: Any) -> None:
    """Names to peft the modules that each of its methods adapts by default: parameter names are BERT's."""
    for name, targets in vars(constants).items():
        if name.startswith("TRANSFORMERS_MODELS_TO_") and "bert" in targets:
            for model_type in ("langcell", "langcell_cell"):
                targets.setdefault(model_type, targets["bert"])
            # A text tower by itself reads no cells, so that its cross-attention would learn nothing.
            targets.setdefault("langcell_text", [_OF_SELF_ATTENTION.get(target, target) for target in targets["bert"]])


def _register_adapted_classes(auto: Any) -> None:
    """Adds the family to the packages whose classes `AutoPeftModel` imports when an adapter names them."""
    others = getattr(auto, "get_default_import_allowlist", None)  # Older versions import any package.
    if others is not None:
        auto.get_default_import_allowlist = lambda: [*others(), "modeling_langcell"]


def _let_names_be_loaded_by_own_classes(module: Any) -> None:
    """Does so as soon as the classes are imported, which may be without any Auto class."""
    for loaded in (getattr(module, name) for name in module.__all__):
        if hasattr(loaded, "from_pretrained"):
            _let_names_be_loaded(loaded, only_config=hasattr(loaded, "model_type"))


def _let_names_be_loaded(loaded: Any, only_config: bool = False) -> None:
    """Lets `from_pretrained` of a class take the names of the package's checkpoints."""
    load = loaded.from_pretrained.__func__
    if hasattr(load, "__langcell__"):  # The class inherits it from one that was changed before.
        return

    @wraps(load)
    def from_pretrained(cls: Any, pretrained_model_name_or_path: Any = None, *args: Any, **kwargs: Any) -> Any:
        return load(cls, _resolve(pretrained_model_name_or_path, only_config), *args, **kwargs)

    from_pretrained.__langcell__ = True  # type: ignore[attr-defined]
    loaded.from_pretrained = classmethod(from_pretrained)


def _resolve(name: Any, only_config: bool = False) -> Any:
    """Returns the folder of a checkpoint of the package, and anything else as it is."""
    if not isinstance(name, str):
        return name
    return import_module(f"{__package__}.checkpoint.builtin").resolve_checkpoint(name, only_config=only_config)


def _add_kernels(packed: Any) -> None:
    import_module(f"{__package__}.kernels").add_kernels()


#: The function that registers with each module of transformers and peft, or adds to one of the family's own.
_REGISTRATIONS: dict[str, Callable[[Any], None]] = {
    "transformers.models.auto.configuration_auto": _register_configs,
    "transformers.models.auto.modeling_auto": _register_models,
    "transformers.models.auto.feature_extraction_auto": _register_feature_extractor,
    "transformers.models.auto.processing_auto": _register_processor,
    "transformers.models.auto.tokenization_auto": _register_tokenizer,
    "transformers.pipelines": _register_pipeline,
    **{
        f"{__package__}.model.{module}": _let_names_be_loaded_by_own_classes
        for module in (
            "configuration_langcell",
            "modeling_langcell",
            "feature_extraction_langcell",
            "processing_langcell",
        )
    },
    f"{__package__}.model.packed_langcell": _add_kernels,
    "peft.utils.constants": _register_adapter_targets,
    "peft.auto": _register_adapted_classes,
}
_HOOK = _RegistrationHook()

__all__ = ["register"]

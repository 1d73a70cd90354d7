# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
from . import pl as pl
from .adaptation.adapt import AdaptationConfig as AdaptationConfig
from .adaptation.adapt import adapt as adapt
from .annotation.annotator import LangCellAnnotator as LangCellAnnotator
from .annotation.annotator import annotate as annotate
from .annotation.calibrate import calibrate as calibrate
from .annotation.explain import explain as explain
from .annotation.large_files import annotate_file as annotate_file
from .annotation.large_files import embed_file as embed_file
from .annotation.search import search as search
from .annotation.table import to_table as to_table
from .conversion.published import convert as convert
from .corpus.build import make_corpus as make_corpus
from .io.example import load_example as load_example
from .model.configuration_langcell import LangCellCellConfig as LangCellCellConfig
from .model.configuration_langcell import LangCellConfig as LangCellConfig
from .model.configuration_langcell import LangCellTextConfig as LangCellTextConfig
from .model.errors import InputError as InputError
from .model.feature_extraction_langcell import LangCellFeatureExtractor as LangCellFeatureExtractor
from .model.modeling_langcell import LangCellCellModel as LangCellCellModel
from .model.modeling_langcell import LangCellForMaskedLM as LangCellForMaskedLM
from .model.modeling_langcell import LangCellForMaskedLMOfJoint as LangCellForMaskedLMOfJoint
from .model.modeling_langcell import LangCellForPreTraining as LangCellForPreTraining
from .model.modeling_langcell import LangCellForSequenceClassification as LangCellForSequenceClassification
from .model.modeling_langcell import (
    LangCellForSequenceClassificationOfJoint as LangCellForSequenceClassificationOfJoint,
)
from .model.modeling_langcell import LangCellModel as LangCellModel
from .model.modeling_langcell import LangCellTextModel as LangCellTextModel
from .model.objectives import DataCollatorForMaskedGenes as DataCollatorForMaskedGenes
from .model.pipeline_langcell import ZeroShotCellAnnotationPipeline as ZeroShotCellAnnotationPipeline
from .model.processing_langcell import LangCellProcessor as LangCellProcessor
from .pretraining.config import PretrainingConfig as PretrainingConfig
from .pretraining.run import pretrain as pretrain
from .publishing.publish import publish as publish
from .report.page import write_report as write_report

__version__: str
__all__: list[str]

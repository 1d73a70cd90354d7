# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""transformers' shared tests of processors and feature extractors."""

import tempfile
import unittest
from pathlib import Path

from modeling_langcell import LangCellFeatureExtractor, LangCellProcessor
from tests.suites.upstream import leave_out, upstream
from tests.support import tiny

processors = upstream("transformers", "test_processing_common")
extractors = upstream("transformers", "test_feature_extraction_common")


@leave_out(
    {
        "test_call_arguments_not_in_processor_kwargs": "the signature also names options that all processors have",
        "test_init_arguments_not_in_class_attributes": "templates are a property, checked whenever they are set",
        "test_model_input_names": "it gives texts and no cells, and expects the names of both",
    }
)
class TestProcessor(processors.ProcessorTesterMixin, unittest.TestCase):
    processor_class = LangCellProcessor

    @classmethod
    def _setup_from_components(cls):
        with tempfile.TemporaryDirectory() as folder:
            return tiny.make_processor(Path(folder))

    def get_subprocessor_name(self, modality, attributes):
        """Returns no name for sounds, which the tests would give to any feature extractor."""
        return super().get_subprocessor_name(modality, attributes) if modality == "text" else None


@leave_out({"test_init_without_params": "there is no gene vocabulary that would be right by default"})
class TestFeatureExtractor(extractors.FeatureExtractionSavingTestMixin, unittest.TestCase):
    feature_extraction_class = LangCellFeatureExtractor
    feat_extract_dict = {"gene_vocabulary": tiny.gene_vocabulary(), "max_length": 64}

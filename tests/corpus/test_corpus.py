# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Finished corpora."""

import pytest

from modeling_langcell import InputError
from modeling_langcell.corpus.corpus import Corpus


def test_folder_without_a_corpus(tmp_path):
    with pytest.raises(InputError, match="holds no corpus"):
        Corpus(tmp_path)

# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
from .build import CorpusSettings as CorpusSettings
from .build import make_corpus as make_corpus
from .sources import find_sources as find_sources
from .sources import read_source_table as read_source_table

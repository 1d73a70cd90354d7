# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Reads, when it is imported, what every command reads and keeps: so that commands which are forked find it there."""

from modeling_langcell.ontology import id_of

id_of("B cell")

# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
from .bert import GENES as GENES
from .bert import export_cell_tower as export_cell_tower
from .bert import read_cell_tower as read_cell_tower
from .published import convert as convert
from .published import read_gene_vocabulary as read_gene_vocabulary

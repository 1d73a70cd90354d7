# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
from . import example as example
from .h5ad import open_cells as open_cells
from .h5ad import open_lightly as open_lightly
from .h5ad import read_annotation as read_annotation
from .h5ad import write_annotated as write_annotated
from .tables import require_room as require_room
from .tables import write_table as write_table

# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
from .page import write_report as write_report
from .plots import draw as draw
from .plots import draw_genes as draw_genes
from .plots import lay_out as lay_out
from .plots import write_figure as write_figure

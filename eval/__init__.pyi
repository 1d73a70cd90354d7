# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
from .figures import FIGURES as FIGURES
from .figures import draw_task as draw_task
from .figures import write_html as write_html
from .run import TASKS as TASKS
from .run import evaluate as evaluate
from .run import find_task as find_task
from .studies import read_studies as read_studies
from .task import EvaluationContext as EvaluationContext

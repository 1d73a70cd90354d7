# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
from .files import CARD as CARD
from .files import EVALUATION as EVALUATION
from .loading import load_processor as load_processor
from .repository import require_write_access as require_write_access

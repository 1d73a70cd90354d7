# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
from .cards import write_card as write_card

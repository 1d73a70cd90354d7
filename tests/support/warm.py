# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""
Does, when it is imported, what every command does and libraries remember: so that commands which are forked find it
done.
"""

import torch

from modeling_langcell.checkpoint.loading import load_checkpoint
from modeling_langcell.ontology import id_of

torch.set_num_threads(1)  # A server that forks must not start threads.
id_of("B cell")
load_checkpoint("langcell-mini")

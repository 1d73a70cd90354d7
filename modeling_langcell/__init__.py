# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""
LangCell: cells and natural language in one space. Importing this package registers the family with transformers' Auto
    classes.

```python
>>> import modeling_langcell
>>> from transformers import AutoConfig
>>> type(AutoConfig.for_model("langcell")).__name__
'LangCellConfig'

```

The names that this module offers are in `__init__.pyi`. Each is imported when it is first used, so that importing the
package is fast.

The package logs to the logger `modeling_langcell`, which is silent until a program adds a handler.
"""

import logging

import lazy_loader

from .registration import register

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

logging.getLogger(__name__).addHandler(logging.NullHandler())
register()

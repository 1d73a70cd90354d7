# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""The model family: the files that travel with every checkpoint, flat, which import nothing else of the package."""

# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""The model family: what travels with every checkpoint, flat, and imports nothing of the rest of the package."""

# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""What an annotation looks like: the page and the figures."""

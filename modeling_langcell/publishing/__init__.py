# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Renders cards, checks folders, and publishes them on the Hub."""

# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Checkpoints and adapters: found, loaded, told apart, and kept in folders and repositories."""

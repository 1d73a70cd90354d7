# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Files of cells: reads and writes them, and names the columns that an annotation adds."""

# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Files of cells: how they are read and written, and the names of what is written into them."""

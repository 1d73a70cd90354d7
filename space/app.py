# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""
LangCell in a browser: drop an `.h5ad`, name or describe types of cells, and get labels, their confidence and the genes
behind them.

    python space/app.py

It serves on port 7860 of this machine only; in a Space of Hugging Face, on every address. The environment variables
`PORT`, `HOST` and `MODEL` change the port, the address and the checkpoint.
"""

if __name__ == "__main__":
    # The processes that work for visitors import this file, too, and need nothing of the server.
    from server import serve

    serve()

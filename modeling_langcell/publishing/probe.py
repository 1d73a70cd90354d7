# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""
Embeddings that a checkpoint gives to made-up cells, or the number of an architecture's parameters. As a script it loads
the folder with transformers alone, as if this package were not installed.

    python -I probe.py FOLDER OUTPUT.safetensors
"""

import os
import sys
import threading
from pathlib import Path
from typing import Any

TEXTS = ["cell type: natural killer cell.", "cell type: monocyte."]


def made_up_cells(processor: Any) -> tuple[list[str], Any]:
    """Returns up to 64 genes that a processor knows, and the counts of two cells, `(2, genes)`."""
    import numpy as np
    import scipy.sparse as sp

    vocabulary = processor.feature_extractor.gene_vocabulary
    pairs = zip(vocabulary["ensembl_ids"], vocabulary["medians"], strict=True)
    genes = [gene for gene, median in pairs if median is not None][:64]
    counts = np.arange(1, len(genes) + 1)
    return genes, sp.csr_matrix(np.stack([counts, counts[::-1]]))


def embed(model: Any, processor: Any) -> dict[str, Any]:
    """Returns the embeddings of two cells and, from a joint model, of two texts: `cell_embeds` and `text_embeds`."""
    import torch

    genes, cells = made_up_cells(processor)
    batch = processor(cells=cells, gene_ids=genes, text=TEXTS, return_tensors="pt")
    with torch.inference_mode():
        if hasattr(model, "get_cell_features"):
            options = {"pooled_only": True, "return_dict": True}
            cells = model.get_cell_features(batch["cell_input_ids"], batch["cell_attention_mask"], **options)
            texts = model.get_text_features(batch["input_ids"], batch["attention_mask"], **options)
            return {"cell_embeds": cells.pooler_output, "text_embeds": texts.pooler_output}
        cell_tower = getattr(model, "cell_model", model)
        return {"cell_embeds": cell_tower(batch["cell_input_ids"], batch["cell_attention_mask"]).pooler_output}


def _load_and_embed(folder: Path) -> dict[str, Any]:
    """Loads a folder by its own code, and embeds; errors are those of transformers."""
    import torch
    from transformers import AutoConfig, AutoModel, AutoProcessor

    own_code: Any = {"trust_remote_code": True}
    if not (folder / "model.safetensors").is_file():
        config = AutoConfig.from_pretrained(folder, **own_code)
        with torch.device("meta"):
            model = AutoModel.from_config(config, **own_code)
        return {"parameters": torch.tensor(sum(parameter.numel() for parameter in model.parameters()))}
    model, report = AutoModel.from_pretrained(folder, dtype=torch.float32, output_loading_info=True, **own_code)
    if report["missing_keys"]:
        raise ValueError(f"weights are missing: {sorted(report['missing_keys'])[:3]}")
    return embed(model, AutoProcessor.from_pretrained(folder, **own_code))


class _NotInstalled:
    """Finder that makes imports of this package fail."""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "modeling_langcell":
            raise ModuleNotFoundError(f"No module named {name!r}")


def _end_with_the_caller() -> None:
    """Ends this process when the one that started it, which holds the other end of stdin, has ended."""
    os.read(0, 1)
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=_end_with_the_caller, daemon=True).start()
    sys.meta_path.insert(0, _NotInstalled())
    from safetensors.torch import save_file

    source, output = map(Path, sys.argv[1:])
    found = _load_and_embed(source)
    save_file({name: tensor.contiguous() for name, tensor in found.items()}, output)

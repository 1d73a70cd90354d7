# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""
What a folder gives to somebody who loads it: embeddings of made-up cells, or of an architecture the number of its
parameters. Run as a script, it does so with transformers alone, as if this package were not installed.

    python -I loading_probe.py FOLDER OUTPUT.safetensors
"""

import sys
from pathlib import Path
from typing import Any

TEXTS = ["cell type: natural killer cell.", "cell type: monocyte."]


def cells_of(processor: Any) -> tuple[list[str], Any]:
    """Genes that a processor knows, and two cells with counts of them."""
    import numpy as np
    import scipy.sparse as sp

    vocabulary = processor.feature_extractor.gene_vocabulary
    pairs = zip(vocabulary["ensembl_ids"], vocabulary["medians"], strict=True)
    genes = [gene for gene, median in pairs if median is not None][:64]
    counts = np.arange(1, len(genes) + 1)
    return genes, sp.csr_matrix(np.stack([counts, counts[::-1]]))


def probe(folder: Path, **loading: Any) -> dict[str, Any]:
    """Tensors by name; what fails is raised as transformers raises it."""
    import torch
    from transformers import AutoConfig, AutoModel, AutoProcessor

    if not (folder / "model.safetensors").is_file():
        config = AutoConfig.from_pretrained(folder, **loading)
        with torch.device("meta"):
            model = AutoModel.from_config(config, **loading)
        return {"parameters": torch.tensor(sum(parameter.numel() for parameter in model.parameters()))}
    model, report = AutoModel.from_pretrained(folder, dtype=torch.float32, output_loading_info=True, **loading)
    if report["missing_keys"]:
        raise ValueError(f"weights are missing: {sorted(report['missing_keys'])[:3]}")
    processor = AutoProcessor.from_pretrained(folder, **loading)
    genes, cells = cells_of(processor)
    batch = processor(cells=cells, gene_ids=genes, text=TEXTS, return_tensors="pt")
    with torch.inference_mode():
        if hasattr(model, "get_cell_features"):
            cell_embeds = model.get_cell_features(batch["cell_input_ids"], batch["cell_attention_mask"])
            text_embeds = model.get_text_features(batch["input_ids"], batch["attention_mask"])
            return {"cell_embeds": cell_embeds, "text_embeds": text_embeds}
        return {"cell_embeds": model(batch["cell_input_ids"], batch["cell_attention_mask"]).pooler_output}


class _NotInstalled:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "modeling_langcell":
            raise ModuleNotFoundError(f"No module named {name!r}")


if __name__ == "__main__":
    sys.meta_path.insert(0, _NotInstalled())
    from safetensors.torch import save_file

    source, output = map(Path, sys.argv[1:])
    found = probe(source, trust_remote_code=True)
    save_file({name: tensor.contiguous() for name, tensor in found.items()}, output)

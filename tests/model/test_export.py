# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""langcell-mini's towers as exported, traced and ONNX programs, for any rows of any length; and a compiled step."""

import pytest
import torch
from torch.export import Dim
from transformers import AutoConfig, AutoModel, AutoProcessor

from modeling_langcell import LangCellForPreTraining
from modeling_langcell.io.example import load_example
from modeling_langcell.model.objectives import MaskedGeneModelling
from tests.model.test_modeling_langcell import CELLS, VOCABULARY, joint_inputs, sharp_config
from tests.support.paths import REPOSITORY

MINI = REPOSITORY / "hub_configs" / "langcell-mini"
TOWERS = ("cell_config", "text_config")
TEXTS = ["cell type: B cell.", "cell type: CD14-positive monocyte. A monocyte that expresses CD14.", "T cell", "cell"]


def tower(config_name: str) -> torch.nn.Module:
    config = getattr(AutoConfig.from_pretrained(MINI), config_name)
    return AutoModel.from_pretrained(MINI, config=config, dtype=torch.float32).eval()


def rows(n: int, length: int, vocabulary: int = 20_000) -> dict[str, torch.Tensor]:
    """Returns rows of different lengths, the first of which has no padding."""
    random = torch.Generator().manual_seed(n)
    lengths = torch.randint(2, length, (n, 1), generator=random)
    lengths[0] = length
    mask = (torch.arange(length) < lengths).long()
    return {"input_ids": torch.randint(3, vocabulary, (n, length), generator=random) * mask, "attention_mask": mask}


def dynamic(model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> dict[str, dict[int, Dim]]:
    sizes = {0: Dim("rows"), 1: Dim("length", max=model.config.max_position_embeddings)}
    return dict.fromkeys(inputs, sizes)


@pytest.mark.long
@pytest.mark.parametrize("pooled_only", [False, True])
@pytest.mark.parametrize("config_name", TOWERS)
def test_torch_export(config_name, pooled_only):
    model, example = tower(config_name), rows(3, 9)
    program = torch.export.export(
        model,
        (),
        example | {"pooled_only": pooled_only},
        dynamic_shapes=dynamic(model, example) | {"pooled_only": None},
    ).module()
    for n, length in ((3, 9), (5, 17), (2, 4), (1, 12)):
        inputs = rows(n, length)
        with torch.no_grad():
            found, expected = (run(**inputs, pooled_only=pooled_only) for run in (program, model))
        torch.testing.assert_close(found.last_hidden_state, expected.last_hidden_state, atol=1e-5, rtol=0)
        torch.testing.assert_close(found.pooler_output, expected.pooler_output, atol=1e-5, rtol=0)


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("config_name", TOWERS)
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
def test_jit_trace(config_name, gradients):
    model, example = tower(config_name), rows(3, 9)
    model.config.return_dict = False  # A trace returns tensors or tuples.
    with torch.set_grad_enabled(gradients):
        program = torch.jit.trace(model, example_kwarg_inputs=example, check_trace=False)
    for n, length in ((3, 9), (5, 17), (2, 4), (1, 12)):
        inputs = rows(n, length)
        with torch.no_grad():
            for found, expected in zip(program(**inputs), model(**inputs), strict=True):
                torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.e2e
@pytest.mark.parametrize("config_name", TOWERS)
def test_onnx_reads_real_cells_and_texts_alike(config_name, tmp_path):
    import onnxruntime

    model = tower(config_name)
    processor, cells = AutoProcessor.from_pretrained(MINI), load_example()
    counts = {"use_raw": True, "counts": "log1p"}

    def read(first: int, n: int, length: int) -> dict[str, torch.Tensor]:
        if config_name == "text_config":
            return dict(processor(text=TEXTS[first : first + n], return_tensors="pt"))
        batch = processor(cells[first : first + n], **counts, max_length=length, return_tensors="pt")
        return {name.removeprefix("cell_"): tensor for name, tensor in batch.items()}

    example = read(0, 2, 40)
    path = tmp_path / "tower.onnx"
    torch.onnx.export(model, (), path, kwargs=example, dynamic_shapes=dynamic(model, example), dynamo=True)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for first, n, length in ((0, 2, 40), (0, 4, 512), (1, 1, 90)):
        inputs = read(first, n, length)
        found = session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
        with torch.no_grad():
            expected = model(**inputs)
        states, pooled = map(torch.from_numpy, found)
        torch.testing.assert_close(pooled, expected.pooler_output, atol=1e-5, rtol=0)
        # The state of one word of these texts magnifies rounding: PyTorch's own is 5e-5 from that in float64.
        torch.testing.assert_close(states, expected.last_hidden_state, atol=1e-3, rtol=0)


@pytest.mark.e2e
def test_a_step_of_pre_training_is_one_graph():
    """With cells in one group and distinct texts, all four objectives compile without a break."""
    torch.manual_seed(0)
    shallow = {"num_hidden_layers": 1}
    model = LangCellForPreTraining(sharp_config(cell_config=shallow, text_config=shallow)).train()
    shown, targets = MaskedGeneModelling(VOCABULARY, probability=0.5).corrupt(joint_inputs()["cell_input_ids"])
    given = {"masked_input_ids": shown, "masked_gene_targets": targets, "negative_draws": torch.rand(CELLS, 2)}
    inputs = joint_inputs() | given | {"text_index": torch.tensor([1, 0, 3])}
    # The masked genes, which alone are scored, are as many as they are.
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        compiled = torch.compile(model, fullgraph=True, backend="eager")(**inputs)
    expected = model(**inputs)
    for name in ("masked_gene_loss", "cell_cell_loss", "cell_text_loss", "matching_loss"):
        torch.testing.assert_close(compiled[name], expected[name])
    drawn = torch.compile(model, fullgraph=True, backend="eager")(**joint_inputs(), text_index=torch.tensor([1, 0, 3]))
    drawn.loss.backward()
    assert torch.isfinite(drawn.loss)

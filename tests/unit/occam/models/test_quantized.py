"""Linear maps in int8: against a literal loop, row by row, and over whole checkpoints."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import VideoLlavaForConditionalGeneration

from occam.calibration import ARTEFACT_NAME
from occam.config import EngineConfig
from occam.errors import InvalidInput
from occam.models.checkpoint import load_stock
from occam.models.quantized import Int8Linear, check_cpu, quantize
from occam.models.registry import load_model
from tests.parity import checkpoint_qwen
from tests.parity.checkpoint import write_checkpoint
from tests.parity.matrix import WRITERS


def literal(x: Tensor, linear: nn.Linear) -> Tensor:
    """The definition, number by number: each row and each channel in 127 steps of its largest magnitude."""

    def steps(row: list[float]) -> tuple[list[int], float]:
        step = max(map(abs, row)) / 127
        return [round(value / step) if step else 0 for value in row], step

    channels = [steps(row) for row in linear.weight.tolist()]
    bias = [0.0] * len(channels) if linear.bias is None else linear.bias.tolist()
    rows = []
    for row in x.tolist():
        mine, step = steps(row)
        rows.append(
            [
                sum(a * b for a, b in zip(mine, theirs, strict=True)) * step * scale + more
                for (theirs, scale), more in zip(channels, bias, strict=True)
            ]
        )
    return torch.tensor(rows)


def made(in_features: int, out_features: int, bias: bool = True) -> nn.Linear:
    torch.manual_seed(in_features)
    return nn.Linear(in_features, out_features, bias=bias).requires_grad_(False)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 7, 3), (5, 33, 16), (16, 64, 1)])
def test_it_is_its_definition(shape: tuple[int, int, int], bias: bool) -> None:
    rows, width, out = shape
    linear = made(width, out, bias)
    x = torch.randn(rows, width)
    x[0] = 0
    torch.testing.assert_close(Int8Linear.of(linear)(x), literal(x, linear), atol=1e-5, rtol=1e-5)


def test_it_is_near_the_floating_map_in_every_dtype() -> None:
    linear = made(512, 96)
    x = torch.randn(2, 9, 512)
    for dtype, most in ((torch.float32, 0.02), (torch.bfloat16, 0.03)):
        y = Int8Linear.of(linear.to(dtype))(x.to(dtype))
        expected = linear.float()(x)
        assert (y.dtype, y.shape) == (dtype, (2, 9, 96))
        assert (y.float() - expected).norm() < most * expected.norm()


def test_a_row_does_not_depend_on_those_beside_it() -> None:
    """Bit for bit: so answers together and alone differ by other operations only."""
    int8 = Int8Linear.of(made(300, 40))
    x = torch.randn(70, 300) * torch.logspace(-3, 3, 70)[:, None]
    whole = int8(x)
    assert torch.equal(torch.cat([int8(row[None]) for row in x]), whole)
    assert torch.equal(int8(x[:0]), whole[:0])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_row_that_is_not_finite_stays_so_and_spoils_no_other(value: float) -> None:
    int8 = Int8Linear.of(made(12, 5))
    x = torch.randn(3, 12)
    expected = int8(x)
    x[1, 4] = value
    y = int8(x)
    assert not y[1].isfinite().any()
    assert torch.equal(y[[0, 2]], expected[[0, 2]])


@pytest.mark.usefixtures("int8_anywhere")
@pytest.mark.parametrize("write", [write_checkpoint, checkpoint_qwen.write_checkpoint])
def test_a_checkpoint_keeps_its_head_and_no_other_floating_map(write: object, tmp_path: Path) -> None:
    folder = write(tmp_path)  # type: ignore[operator]
    lm = load_model(EngineConfig(model=str(folder), quantization="int8"))
    model: nn.Module = lm.model  # type: ignore[attr-defined]
    stock: nn.Module = load_model(EngineConfig(model=str(folder))).model  # type: ignore[attr-defined]
    floating = {name for name, module in stock.named_modules() if isinstance(module, nn.Linear)}
    int8 = {name: module for name, module in model.named_modules() if isinstance(module, Int8Linear)}
    assert floating - int8.keys() == {"lm_head"}
    for name, module in int8.items():
        expected = Int8Linear.of(stock.get_submodule(name))  # type: ignore[arg-type]
        assert torch.equal(module.weight, expected.weight)
        assert torch.equal(module.scale, expected.scale)


@pytest.mark.usefixtures("int8_anywhere")
def test_half_precision_on_disk_is_quantized_as_it_lies_there(tmp_path: Path) -> None:
    """The rest becomes float32 all the same, and what is computed in float32 from the start keeps its bits."""
    folder = write_checkpoint(tmp_path)
    model = load_model(EngineConfig(model=str(folder), dtype="bfloat16")).model  # type: ignore[attr-defined]
    model.save_pretrained(folder)
    (folder / ARTEFACT_NAME).unlink()
    wide = load_model(EngineConfig(model=str(folder))).model  # type: ignore[attr-defined]
    int8 = load_model(EngineConfig(model=str(folder), quantization="int8")).model  # type: ignore[attr-defined]
    name = "model.language_model.layers.0.mlp.down_proj"
    assert torch.equal(int8.get_submodule(name).weight, Int8Linear.of(wide.get_submodule(name)).weight)
    expected = dict(wide.named_parameters()) | dict(wide.named_buffers())
    kept = {name: tensor for name, tensor in (*int8.named_parameters(), *int8.named_buffers()) if name in expected}
    assert {"lm_head.weight", "model.language_model.rotary_emb.inv_freq"} <= kept.keys()
    for name, tensor in kept.items():
        assert tensor.dtype == torch.int8 or torch.equal(tensor, expected[name]), name


@pytest.mark.usefixtures("int8_anywhere")
def test_a_mixture_of_experts_is_refused(tmp_path: Path) -> None:
    config = EngineConfig(model=str(WRITERS["qwen3_vl_moe"](tmp_path)), quantization="int8")
    with pytest.raises(InvalidInput, match=r"would stay in floating point \(.*experts.gate_up_proj is the") as caught:
        load_model(config)
    assert caught.value.param == "quantization"


def test_any_matrix_that_is_no_linear_map_is_refused() -> None:
    """Before anything is changed."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Embedding(3, 4), nn.Bilinear(4, 4, 2))
    with pytest.raises(InvalidInput, match=r"\(2.weight is the first of 1\)"):
        quantize(model)
    assert isinstance(model[0], nn.Linear)


def saturating(rows: Tensor, columns: Tensor) -> Tensor:
    """oneDNN's product without VNNI: of unsigned rows, each two products added in int16."""
    products = (rows.int() + 128)[:, :, None] * columns.int()
    pairs = products.unflatten(1, (-1, 2)).sum(2).clamp(-(2**15), 2**15 - 1)
    return (pairs.sum(1) - 128 * columns.int().sum(0)).int()


def exact(rows: Tensor, columns: Tensor) -> Tensor:
    return rows.int() @ columns.int()


@pytest.mark.parametrize(
    ("vnni", "product", "message"),
    [(False, exact, "needs a CPU with AVX512-VNNI"), (True, saturating, "products of int8 saturate")],
)
def test_it_is_for_a_cpu_that_multiplies_int8_well(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, vnni: bool, product: object, message: str
) -> None:
    """Refused before anything is read: there are no weights to load."""
    (folder := write_checkpoint(tmp_path)).joinpath("model.safetensors").unlink()
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: vnni)
    monkeypatch.setattr(torch, "_int_mm", product)
    with pytest.raises(InvalidInput, match=message) as caught:
        load_stock(VideoLlavaForConditionalGeneration, folder, EngineConfig(model="any", quantization="int8"))
    assert caught.value.param == "quantization"


def test_a_cpu_that_multiplies_int8_well_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: True)
    monkeypatch.setattr(torch, "_int_mm", exact)
    check_cpu()


def test_it_is_for_a_cpu(tmp_path: Path) -> None:
    config = EngineConfig(model=str(write_checkpoint(tmp_path)), quantization="int8", device="cuda")
    with pytest.raises(InvalidInput, match="runs on a CPU only, got device 'cuda'"):
        load_model(config)

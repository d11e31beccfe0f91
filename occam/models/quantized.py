"""Linear maps in 8 bits, weights and activations: several times as fast as float32 where a CPU multiplies int8 well.

Symmetric, a scale for each output channel of the weights and one for each row of the input, taken when it comes
(W8A8, dynamic, per token). Products are summed in int32, so that a row's bits do not depend on the rows beside it.
"""

from typing import Self

import numpy as np
import torch
from torch import Tensor, nn

from occam.errors import InvalidInput
from occam.int8 import quantize_rows

_LARGEST = torch.iinfo(torch.int8).max
KEPT = "lm_head"
"""The map whose outputs are compared at their last bits; it stays as it is."""
_FLOATING = (nn.Embedding, nn.Conv2d, nn.Conv3d)
"""What stays in floating point beside it: rows that are looked up, and the towers' patches."""


class Int8Linear(nn.Module):
    """A linear map of int8 weights.

    weight: int8 [out, in]; scale: float32 [out]; bias: [out] or None
    """

    weight: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, scale: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)
        self.register_buffer("bias", bias)

    @classmethod
    def of(cls, linear: nn.Linear) -> Self:
        """The map that is nearest to a floating one."""
        weight, scale = quantize_rows(linear.weight.detach())
        return cls(weight, scale.squeeze(-1), None if linear.bias is None else linear.bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] to [..., out] of its dtype; a row that is not finite stays that, and spoils no other."""
        rows, row_scale = quantize_rows(x.flatten(0, -2))
        y = torch._int_mm(rows, self.weight.T) * row_scale
        y *= self.scale
        if self.bias is not None:
            y += self.bias
        return y.to(x.dtype).view(*x.shape[:-1], self.out_features)


def check_cpu() -> None:
    """InvalidInput where int8 would be slower than floating point here, or wrong.

    Without AVX512-VNNI torch multiplies int8 number by number, or adds products in int16, where they saturate silently.
    """
    if not torch.cpu._is_vnni_supported():
        raise InvalidInput(
            "quantization int8 needs a CPU with AVX512-VNNI, and this one has none: it would be slower than none.",
            "quantization",
        )
    # The largest products there are, with signs that are the same, are turned and alternate.
    rows = np.full((3, 256), _LARGEST, np.int8)
    rows[1] *= -1
    rows[2, ::2] *= -1
    wide = rows.astype(np.int32)
    product = torch._int_mm(torch.from_numpy(rows), torch.from_numpy(rows).T)
    if not np.array_equal(product.numpy(), wide @ wide.T):
        raise InvalidInput(
            "quantization int8 needs AVX512-VNNI, which torch does not use on this CPU: its products of int8 saturate. "
            "ONEDNN_MAX_CPU_ISA may be set too low.",
            "quantization",
        )


def quantize(model: nn.Module) -> None:
    """Put `Int8Linear` in the place of every linear map but `KEPT`, one after the other: no second model is held.

    InvalidInput where another matrix would be left, as the experts of a mixture, which are no modules of their own.
    """
    left = [
        f"{name}.{key}"
        for name, module in model.named_modules()
        if not isinstance(module, (nn.Linear, *_FLOATING))
        for key, parameter in module.named_parameters(recurse=False)
        if parameter.ndim > 1
    ]
    if left:
        raise InvalidInput(
            "quantization int8 is not for this checkpoint: experts of a mixture, or other weights that are no linear "
            f"maps, would stay in floating point ({left[0]} is the first of {len(left)}); take none.",
            "quantization",
        )
    linear = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.rpartition(".")[2] != KEPT
    ]
    while linear:
        name, module = linear.pop()
        model.set_submodule(name, Int8Linear.of(module))

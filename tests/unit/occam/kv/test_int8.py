import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from occam.int8 import quantize_rows
from occam.kv.int8 import is_finite, restore

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
TINY = np.float32(torch.finfo(torch.float32).tiny)


def slow(row: list[float]) -> tuple[list[int], float]:
    """One row by the definition: a number for itself, in float32."""
    largest = max(abs(number) for number in row)
    scale = max(np.nextafter(np.float32(largest) / np.float32(127), np.float32(0)), TINY)
    return [int(np.round(np.float32(number) / scale)) for number in row], float(scale)


@st.composite
def rows(draw: st.DrawFn) -> Tensor:
    """Numbers of any size that the dtype has, its largest and its least among them, and zeros."""
    dtype = draw(st.sampled_from(DTYPES))
    most, least = torch.finfo(dtype).max, torch.finfo(dtype).smallest_normal
    size = draw(st.sampled_from([least / 4, least, 1e-3, 1.0, 50.0, most]))
    number = st.one_of(st.floats(-1, 1).map(lambda part: part * size), st.sampled_from([0.0, -0.0, most, -most, least]))
    count, width = draw(st.integers(1, 4)), draw(st.integers(1, 9))
    numbers = draw(st.lists(number, min_size=count * width, max_size=count * width))
    return torch.tensor(numbers, dtype=torch.float64).clamp(-most, most).to(dtype).view(count, width)


@settings(max_examples=200, deadline=None)
@given(rows())
def test_it_is_what_the_definition_gives(tensor: Tensor) -> None:
    values, scales = quantize_rows(tensor)
    assert (values.dtype, scales.dtype, tuple(scales.shape)) == (torch.int8, torch.float32, (len(tensor), 1))
    expected = [slow(row) for row in tensor.tolist()]
    assert values.tolist() == [numbers for numbers, _ in expected]
    assert scales[:, 0].tolist() == [scale for _, scale in expected]


@settings(max_examples=200, deadline=None)
@given(rows())
def test_every_number_comes_back_within_half_a_scale(tensor: Tensor) -> None:
    """And half of what its dtype, and float32 underway, can tell apart."""
    values, scales = quantize_rows(tensor)
    restored = restore(values, scales, tensor.dtype)
    assert restored.dtype == tensor.dtype
    assert bool(restored.isfinite().all())
    exact, back = tensor.double(), restored.double()
    rounding = back.abs() * torch.finfo(tensor.dtype).eps + torch.finfo(tensor.dtype).smallest_normal
    assert bool(((back - exact).abs() <= scales.double() * (0.5 + 1e-4) + rounding).all())


def test_a_row_has_the_scale_of_its_own_largest_number() -> None:
    values, scales = quantize_rows(torch.tensor([[[1.0, -127.0, 0.4]], [[0.0, 0.0, 0.0]], [[0.5, 0.25, -0.25]]]))
    assert values.tolist() == [[[1, -127, 0]], [[0, 0, 0]], [[127, 64, -64]]]
    assert scales.flatten().tolist() == pytest.approx([1.0, TINY, 0.5 / 127])


def test_no_rows_are_no_rows() -> None:
    values, scales = quantize_rows(torch.zeros(2, 0, 3))
    assert restore(values, scales, torch.float32).shape == (2, 0, 3)


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_not_finite_is_found_wherever_it_stands(dtype: torch.dtype) -> None:
    assert is_finite(torch.zeros(2, 0, 3, dtype=dtype))
    assert is_finite(torch.full((3, 40), torch.finfo(dtype).max, dtype=dtype))
    for number in (math.nan, math.inf, -math.inf):
        for place in (0, 57, 119):
            tensor = torch.ones(120, dtype=dtype)
            tensor[place] = number
            assert not is_finite(tensor.view(3, 40))

"""Rows computed apart, against the full eager attention map of torch."""

import pytest
import torch

from occam.models.attention_rows import attention_rows


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_rows_equal_the_rows_of_a_full_causal_map(dtype: torch.dtype, kv_heads: int) -> None:
    torch.manual_seed(0)
    q, k = torch.randn(2, 4, 9, 8).to(dtype), torch.randn(2, kv_heads, 9, 8).to(dtype)
    queries = torch.tensor([3, 7, 8])
    expected = torch.empty(2, 3, 9, dtype=torch.float64)
    for item in range(2):
        for row, query in enumerate(queries.tolist()):
            heads = []
            for head in range(4):
                keys = k[item, head // (4 // kv_heads)].double()
                logits = (keys @ q[item, head, query].double()) * 0.3
                logits[query + 1 :] = float("-inf")
                heads.append(torch.softmax(logits, dim=0))
            expected[item, row] = torch.stack(heads).mean(dim=0)
    visible = torch.arange(9)[None, :] <= queries[:, None]
    rows = attention_rows(q[:, :, queries], k, 0.3, visible)
    assert rows.dtype == torch.float32
    assert (rows - expected).abs().max() < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kv_heads", [2, 6])
def test_keys_that_are_ready_give_the_same_bits(dtype: torch.dtype, kv_heads: int) -> None:
    """Contiguous and in float32 already, or as the projections leave them."""
    torch.manual_seed(0)
    q, k = torch.randn(3, 6, 64, 72).to(dtype), torch.randn(3, 150, kv_heads, 72).to(dtype).transpose(1, 2)
    heads = torch.stack([k.float()[:, head // (6 // kv_heads)] for head in range(6)], dim=1)
    expected = torch.softmax(q.float() @ heads.transpose(2, 3) * 0.3, dim=-1).mean(dim=1)
    assert attention_rows(q, k, 0.3).equal(expected)
    assert attention_rows(q, k.float().contiguous(), 0.3).equal(expected)

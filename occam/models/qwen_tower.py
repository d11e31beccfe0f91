"""Qwen3-VL's vision tower with the test-time register, over the stock `transformers` modules.

There is no CLS token: stage I's score of a patch is the attention that all others pay it, on average. Patches attend
within their segment (a temporal group of frames, or an image), and each segment has its own register.

Legend: S segments, P patches of a segment, N = P and its register (last) where there is one, U merge groups of a
segment, M patches of a merge group, C channels, H heads, D head width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.qwen3_vl.modeling_qwen3_vl import (
    Qwen3VLVisionBlock,
    Qwen3VLVisionModel,
    apply_rotary_pos_emb_vision,
)

from occam.config import RegisterMode
from occam.models.attention_rows import attention_rows
from occam.models.base import TowerOutput
from occam.registers import Neuron, TowerTrace, shift_to_register, units_of

ROWS = 64
"""Attention rows held at once: whole maps of a large image would be gigabytes."""

Grid = tuple[int, int, int]
"""Segments, and the rows and columns of patches in each."""


class QwenTower:
    """Runs the blocks and owns their loop, so that the register can enter and be fed; the mergers are run later.

    A register enters behind the position embeddings with none of its own, and without rotation.
    """

    def __init__(self, vision: Qwen3VLVisionModel, neurons: Sequence[Neuron] = ()) -> None:
        self.vision = vision
        self.merge = int(vision.spatial_merge_size)
        self.neurons = tuple(neurons)
        self._units = units_of(self.neurons, len(vision.blocks), vision.device)

    def with_neurons(self, neurons: Sequence[Neuron]) -> "QwenTower":
        """The same tower with these register neurons."""
        return QwenTower(self.vision, neurons)

    def encode(self, pixels: Tensor, grid: Grid, register: RegisterMode | None) -> TowerOutput:
        """Unmerged features [S, U, M, C], registers [S, C], the same of every DeepStack level, and mutual scores.

        pixels: [S * P, K]. A merge group's score is the mean of its patches'; without a reference nothing is scored.
        """
        with_register = register in ("neurons", "zero_token")
        fed = register == "neurons"
        hidden, rotary = self.embed(pixels, grid, with_register)
        levels: list[Tensor] = []
        for index, (block, units) in enumerate(zip(self.vision.blocks, self._units, strict=True)):
            scored = hidden
            hidden, _ = _run_block(block, hidden, rotary, units if fed else None)
            if index in self.vision.deepstack_visual_indexes:
                levels.append(hidden)
        patches = hidden.shape[1] - int(with_register)

        def merge_groups(x_SNC: Tensor) -> Tensor:
            return x_SNC[:, :patches].reshape(grid[0], -1, self.merge**2, *x_SNC.shape[2:])

        if register is None:
            scores_SN = torch.zeros(hidden.shape[:2], device=hidden.device)
        else:
            scores_SN = _mutual_scores(self.vision.blocks[-1], scored, rotary)
        return TowerOutput(
            features=merge_groups(hidden),
            register=hidden[:, -1] if with_register else None,
            planes=tuple(merge_groups(level) for level in levels),
            register_planes=tuple(level[:, -1] for level in levels) if with_register else (),
            scores=merge_groups(scores_SN).mean(dim=2),
            register_scores=scores_SN[:, -1] if with_register else None,
        )

    def merged(self, features: Tensor, level: int | None = None) -> Tensor:
        """Merge groups [..., M, C] as [..., C] for the language model, by the last merger or a DeepStack level's."""
        merger: nn.Module = self.vision.merger if level is None else self.vision.deepstack_merger_list[level]
        merged: Tensor = merger(features.flatten(0, -2).contiguous())
        return merged.view(*features.shape[:-2], merged.shape[-1])

    def trace(self, pixels: Tensor, grid: Grid, neurons: Sequence[Neuron] | None) -> TowerTrace:
        """Run with a trial set of register neurons and report norms, activations and scores (see `registers`)."""
        hidden, rotary = self.embed(pixels, grid, neurons is not None)
        end = hidden.shape[1] if neurons is None else -1
        norms, activations = [], []
        blocks = self.vision.blocks
        for block, units in zip(blocks, units_of(neurons or (), len(blocks), pixels.device), strict=True):
            scored = hidden
            hidden, mlp = _run_block(block, hidden, rotary, units)
            norms.append(hidden[:, :end].float().norm(dim=-1))
            activations.append(mlp[:, :end])
        scores = _mutual_scores(self.vision.blocks[-1], scored, rotary)
        share = scores.new_zeros(scores.shape[0]) if neurons is None else scores[:, -1]
        return TowerTrace(norms=norms, activations=activations, row=scores[:, :end], register_share=share)

    def embed(self, pixels: Tensor, grid: Grid, with_register: bool) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Patch and position embeddings [S, N, C], and cos and sin [S * N, D] of their rotation."""
        segments, rows, columns = grid
        embedded = self.vision.patch_embed(pixels).unflatten(0, (segments, -1))
        hidden = embedded + self._position_table(rows, columns).to(embedded.dtype)
        angles = self._angles(rows, columns)
        if with_register:
            hidden = torch.cat([hidden, hidden.new_zeros(segments, 1, hidden.shape[2])], dim=1)
            angles = torch.cat([angles, angles.new_zeros(1, angles.shape[1])])
        angles = angles.repeat(segments, 1)
        return hidden, (angles.cos(), angles.sin())

    def _position_table(self, rows: int, columns: int) -> Tensor:
        """The learned square table, resampled to this grid; float32 [P, C]."""
        side = self.vision.num_grid_per_side
        table = self.vision.pos_embed.weight.float().T.unflatten(1, (side, side))
        resampled = F.interpolate(table[None], size=(rows, columns), mode="bilinear", align_corners=True)[0]
        return self._in_merge_order(resampled.permute(1, 2, 0))

    def _angles(self, rows: int, columns: int) -> Tensor:
        """Rotary angles of rows and columns; float32 [P, D]."""
        frequency = self.vision.rotary_pos_emb.inv_freq.float()
        y, x = (torch.arange(count, device=frequency.device) for count in (rows, columns))
        position = torch.stack(torch.meshgrid(y, x, indexing="ij"), dim=-1)
        half = (self._in_merge_order(position)[:, :, None] * frequency).flatten(1)
        return torch.cat([half, half], dim=1)

    def _in_merge_order(self, grid_YXC: Tensor) -> Tensor:
        """[P, C] of [rows, columns, C]: the patches of a merge group one behind the other."""
        rows, columns, _ = grid_YXC.shape
        shape = (rows // self.merge, self.merge, columns // self.merge, self.merge, -1)
        return grid_YXC.reshape(shape).transpose(1, 2).flatten(0, 3)


def _run_block(
    block: Qwen3VLVisionBlock, hidden: Tensor, rotary: tuple[Tensor, Tensor], units: Tensor | None
) -> tuple[Tensor, Tensor]:
    """One block, opened at the MLP's activations, which feed the register's `units` [K]; output [S, N, C] and those."""
    segments, tokens, _ = hidden.shape
    # On the CPU, where stock attention wants them as a list: a device would be waited for in every block.
    bounds = torch.arange(0, segments * tokens + 1, tokens, dtype=torch.int32)
    normed = block.norm1(hidden).flatten(0, 1)
    hidden = hidden + block.attn(normed, cu_seqlens=bounds, position_embeddings=rotary).view_as(hidden)
    mlp = block.mlp.act_fn(block.mlp.linear_fc1(block.norm2(hidden)))
    if units is not None and len(units):
        mlp = shift_to_register(mlp, units, first=0)
    return hidden + block.mlp.linear_fc2(mlp), mlp


def _mutual_scores(block: Qwen3VLVisionBlock, hidden: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """Attention that each token of a segment gets from all of its tokens, mean over these and heads; float32 [S, N]."""
    attention = block.attn
    segments, tokens, _ = hidden.shape
    qkv = attention.qkv(block.norm1(hidden).flatten(0, 1)).unflatten(-1, (3, attention.num_heads, -1))
    q_FHD, k_FHD = apply_rotary_pos_emb_vision(qkv[:, 0], qkv[:, 1], *rotary)
    q_SHND, k_SHND = (x.unflatten(0, (segments, tokens)).transpose(1, 2) for x in (q_FHD, k_FHD))
    k_SHND = k_SHND.float().contiguous()  # as all blocks of rows want them
    total_SN = torch.zeros(segments, tokens, device=hidden.device)
    for rows_SHTD in q_SHND.split(ROWS, dim=2):
        total_SN += attention_rows(rows_SHTD, k_SHND, attention.scaling).sum(dim=1)
    return total_SN / tokens

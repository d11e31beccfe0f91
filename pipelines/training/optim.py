"""Muon for the hidden matrices, AdamW for the rest, and the learning rate's course."""

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import nn

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised: Jordan et al. 2024, with the update scaled to AdamW's size (Liu et al. 2025).

    Equal to `torch.optim.Muon(adjust_lr_fn="match_rms_adamw")` but in fp32 and with matrices of one shape as a
    batch: on CPUs without bf16 units that is several times faster.
    """

    def __init__(
        self, matrices: Iterable[nn.Parameter], lr: float, momentum: float = 0.95, weight_decay: float = 0.05
    ) -> None:
        super().__init__(matrices, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """Update every matrix that has a gradient."""
        for group in self.param_groups:
            alike = defaultdict(list)
            for matrix in group["params"]:
                if matrix.grad is not None:
                    alike[matrix.shape].append((matrix, self._momentum(matrix, matrix.grad, group)))
            for (rows, columns), pairs in alike.items():
                directions = orthogonalize(torch.stack([momentum for _, momentum in pairs]))
                size = group["lr"] * 0.2 * max(rows, columns) ** 0.5
                for (matrix, _), direction in zip(pairs, directions, strict=True):
                    matrix.mul_(1 - group["lr"] * group["weight_decay"]).sub_(direction, alpha=size)

    def _momentum(self, matrix: nn.Parameter, gradient: torch.Tensor, group: dict[str, float]) -> torch.Tensor:
        state = self.state[matrix]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(matrix)
        average: torch.Tensor = state["momentum"].lerp_(gradient, 1 - group["momentum"])
        return gradient.lerp(average, group["momentum"])


def orthogonalize(batch: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """Roughly U V^T of each matrix's singular value decomposition, [N, rows, columns], by Newton-Schulz steps."""
    a, b, c = NEWTON_SCHULZ
    tall = batch.shape[1] > batch.shape[2]
    x: torch.Tensor = batch.mT if tall else batch
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + torch.baddbmm(gram, gram, gram, beta=b, alpha=c) @ x
    return x.mT if tall else x


def build_optimizers(
    hidden: nn.Module, others: Iterable[nn.Module], muon_lr: float, adamw_lr: float = 1.5e-3
) -> tuple[torch.optim.Optimizer, ...]:
    """Muon for the linear maps of `hidden`, AdamW for the rest of it and for all parameters of `others`."""
    maps = {id(module.weight) for module in hidden.modules() if isinstance(module, nn.Linear)}
    matrices = [parameter for parameter in hidden.parameters() if id(parameter) in maps]
    rest = [parameter for parameter in hidden.parameters() if id(parameter) not in maps]
    rest += [parameter for module in others for parameter in module.parameters()]
    adamw = torch.optim.AdamW(rest, lr=adamw_lr, betas=(0.9, 0.98), weight_decay=0.05)
    optimizers = (Muon(matrices, lr=muon_lr), adamw)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return optimizers


def set_rate(optimizers: Iterable[torch.optim.Optimizer], step: int, steps: int, warmup: int, decay: float) -> None:
    """Rise over `warmup` steps, hold, then fall to zero over the last `decay` share of the steps."""
    factor = min(1.0, (step + 1) / warmup, (steps - step) / (decay * steps))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * factor

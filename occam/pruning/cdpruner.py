"""CDPruner (arXiv 2506.10967): diverse tokens that matter to the question, a determinantal point process's mode.

Legend: N visual tokens, M text tokens, C channels.
"""

import torch
from torch import Tensor

from occam.pruning.selection import top_k
from occam.pruning.similarity import cosines, min_max, unit

# Of a token's own weight. Less than this left of it is rounding: the token lies in the span of the kept ones.
_EXHAUSTED = 1e-5


def relevance(visual_NC: Tensor, text_MC: Tensor, theta: float = 0.5) -> Tensor:
    """exp(alpha m), m the mean cosine with the text's embeddings scaled to 0..1; float32 [N], from 1 to exp(alpha).

    alpha = theta / (2 (1 - theta)), with theta in [0, 1): 0 asks for diversity alone. The form that OpenVINO gives
    models without a CLIP text tower (there the paper's own relevance, and the sign is turned). All 1 without text.
    """
    if text_MC.shape[0] == 0:
        return torch.ones_like(visual_NC[:, 0], dtype=torch.float32)
    alpha = theta / (2 * (1 - theta))
    return torch.exp(alpha * min_max(cosines(visual_NC, text_MC).mean(dim=1)))


def kernel(features_NC: Tensor, relevance_N: Tensor) -> Tensor:
    """r_i cos(i, j) r_j, the paper's conditional kernel; float32 [N, N]."""
    unit_NC = unit(features_NC)
    # A vector's cosine with itself is 1 to the bit: rounding must not choose among equally relevant tokens.
    likeness_NN = (unit_NC @ unit_NC.mT).diagonal_scatter(unit_NC.any(dim=-1).float())
    return relevance_N.float()[:, None] * likeness_NN * relevance_N.float()


def greedy_map(kernel_NN: Tensor, count: int) -> Tensor:
    """`count` tokens, each the one that raises the kernel's determinant most; bool [N], lower index first among equals.

    Incremental Cholesky (arXiv 1709.05135, algorithm 1). Beyond the kernel's rank every determinant is 0: [ours] the
    tokens still wanted go by their own weight, the diagonal.
    """
    kernel_NN = kernel_NN.float()
    weight_N = kernel_NN.diagonal()
    count = min(max(count, 0), weight_N.shape[0])
    rows_SN = kernel_NN.new_zeros(count, weight_N.shape[0])
    keep_N = torch.zeros_like(weight_N, dtype=torch.bool)
    gain_N = weight_N
    for step in range(count):
        gain_N = gain_N.masked_fill(keep_N | (gain_N <= _EXHAUSTED * weight_N), 0.0)
        if not bool(gain_N.any()):
            return keep_N | top_k(weight_N.masked_fill(keep_N, -torch.inf), count - step)
        taken = gain_N.argmax()
        keep_N[taken] = True
        row_N = (kernel_NN[taken] - rows_SN[:step, taken] @ rows_SN[:step]) / gain_N[taken].sqrt()
        rows_SN[step] = row_N
        gain_N = gain_N - row_N.square()
    return keep_N

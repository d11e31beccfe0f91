"""The strategies' formulas written out, one number at a time in double precision; slow, and independent of the code."""

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

Vector = Sequence[float]
Matrix = Sequence[Sequence[float]]


def dot(x: Vector, y: Vector) -> float:
    return math.fsum(a * b for a, b in zip(x, y, strict=True))


def cosine(x: Vector, y: Vector) -> float:
    lengths = math.sqrt(dot(x, x)) * math.sqrt(dot(y, y))
    return dot(x, y) / lengths if lengths else 0.0


def mean(x: Vector) -> float:
    return math.fsum(x) / len(x)


def softmax(x: Vector) -> list[float]:
    powers = [math.exp(value - max(x)) for value in x]
    return [power / math.fsum(powers) for power in powers]


def scaled(x: Vector) -> list[float]:
    low, high = min(x), max(x)
    return [(value - low) / (high - low) if high > low else 1.0 for value in x]


def first_best(scores: Vector, among: Sequence[int]) -> int:
    best = among[0]
    for i in among:
        if scores[i] > scores[best]:
            best = i
    return best


def best(scores: Vector, count: int) -> set[int]:
    """The highest scores, picked one by one, the first of equals."""
    left, picked = list(range(len(scores))), set()
    while left and len(picked) < count:
        i = first_best(scores, left)
        left.remove(i)
        picked.add(i)
    return picked


def iwp_magnitude(q: Sequence[Matrix], k: Sequence[Matrix], v: Sequence[Matrix]) -> list[float]:
    """q[t][h], k[i][h], v[i][h] are vectors; kappa over an unshifted exponential, so for small logits only."""
    heads, groups = len(q[0]), len(q[0]) // len(k[0])
    width = len(k[0][0])
    query = [[mean([q[t][h][d] for t in range(len(q))]) for d in range(width)] for h in range(heads)]
    magnitudes = []
    for k_i, v_i in zip(k, v, strict=True):
        of_heads = []
        for h in range(heads):
            kappa = math.exp(dot(query[h], k_i[h // groups]) / math.sqrt(width))
            of_heads.append(kappa * math.sqrt(dot(v_i[h // groups], v_i[h // groups])))
        magnitudes.append(mean(of_heads))
    return scaled(magnitudes)


def iwp_duplication(k: Sequence[Matrix], v: Sequence[Matrix]) -> list[list[float]]:
    tokens, heads, width = len(k), len(k[0]), len(k[0][0])
    entries = []
    for i in range(tokens):
        for j in range(tokens):
            of_heads = []
            for h in range(heads):
                apart = math.fsum((a - b) ** 2 for a, b in zip(k[i][h], k[j][h], strict=True))
                of_heads.append(cosine(v[i][h], v[j][h]) * math.exp(-apart / (2 * math.sqrt(width))))
            entries.append(mean(of_heads))
    flat = scaled(entries)
    return [flat[i * tokens : (i + 1) * tokens] for i in range(tokens)]


def pc_mmr(magnitude: Vector, duplication: Matrix, count: int, b: int, g: int, penalty: float) -> set[int]:
    """The loop as the paper states it: C grows chunk by chunk, P is discounted by the newest chunk."""
    p, c, rest = list(magnitude), set(), list(range(len(magnitude)))
    while len(c) < count and rest:
        chunk = []
        for _ in range(min(b, count - len(c))):
            if rest:
                i = first_best(p, rest)
                rest.remove(i)
                chunk.append(i)
        c |= set(chunk)
        for i in rest:
            s = max(duplication[i][j] ** 2 for j in chunk)
            p[i] *= max(0.01, 1 - penalty * s)
        b *= g
    return c


def sparsevlm_raters(visual: Matrix, text: Matrix) -> list[bool]:
    rows = [softmax([dot(v, t) for t in text]) for v in visual]
    weight = [mean([row[t] for row in rows]) for t in range(len(text))]
    return [w > mean(weight) for w in weight]


def attention_rank(rows: Matrix, raters: Sequence[bool]) -> int:
    """Singular values that exceed max(raters, tokens) float32 epsilons of the largest."""
    chosen = np.array([row for row, rates in zip(rows, raters, strict=True) if rates], dtype=np.float64)
    if chosen.size == 0:
        return 0
    largest = np.linalg.svd(chosen, compute_uv=False)[0]
    return int(np.linalg.matrix_rank(chosen, tol=largest * max(chosen.shape) * np.finfo(np.float32).eps))


def visionzip(
    received: Matrix, keys: Sequence[Sequence[Matrix]], dominant: Sequence[int], contextual: Sequence[int]
) -> tuple[list[list[str]], dict[int, dict[int, float]]]:
    """Kinds of patches ("dominant", "contextual", "rest") and, for each kept flat patch, what it is a sum of."""
    kinds, sums = [], {}
    for view, scores in enumerate(received):
        patches = range(len(scores))
        start = view * len(scores)
        top = best(scores, dominant[view])
        rest = [i for i in patches if i not in top]
        step = max(1, len(rest) // contextual[view]) if contextual[view] else 1
        targets = rest[::step][: contextual[view]]
        key = [[mean(of_channel) for of_channel in zip(*heads, strict=True)] for heads in keys[view]]
        assigned: dict[int, list[int]] = {target: [] for target in targets}
        for i in rest:
            if i not in targets and targets:
                likeness = [cosine(key[i], key[target]) for target in targets]
                assigned[targets[first_best(likeness, range(len(targets)))]].append(i)
        kinds.append(["dominant" if i in top else "contextual" if i in targets else "rest" for i in patches])
        sums |= {start + i: {start + i: 1.0} for i in top}
        for target, members in assigned.items():
            sums[start + target] = {start + target: 1.0} | {start + i: 1 / len(members) for i in members}
    return kinds, sums


def divprune(features: Matrix, count: int) -> set[int]:
    """The first pick by its nearest other token, the others by their nearest pick."""
    n = len(features)
    distance = [[1 - cosine(x, y) for y in features] for x in features]
    picked: list[int] = []
    while len(picked) < min(count, n):
        others = [[j for j in (picked or range(n)) if j != i] for i in range(n)]
        nearest = [min((distance[i][j] for j in others[i]), default=math.inf) for i in range(n)]
        picked.append(first_best(nearest, [i for i in range(n) if i not in picked]))
    return set(picked)


def cdpruner_relevance(visual: Matrix, text: Matrix, theta: float) -> list[float]:
    alpha = theta / (2 * (1 - theta))
    return [math.exp(alpha * m) for m in scaled([mean([cosine(v, t) for t in text]) for v in visual])]


def determinant(matrix: Matrix) -> Fraction:
    """By elimination in exact arithmetic."""
    rows = [[Fraction(x) for x in row] for row in matrix]
    product = Fraction(1)
    while rows:
        lead = next((row for row in rows if row[0]), None)
        if lead is None:
            return Fraction(0)
        product *= lead[0] * (-1) ** rows.index(lead)
        rows.remove(lead)
        rows = [[x - row[0] / lead[0] * y for x, y in zip(row[1:], lead[1:], strict=True)] for row in rows]
    return product


def greedy_determinants(kernel: Matrix, count: int, zero: float = 0.0) -> set[int]:
    """Each step adds the token with the largest determinant of all; by weight once all are at most `zero`."""
    n = len(kernel)
    picked: list[int] = []
    while len(picked) < min(count, n):
        rest = [i for i in range(n) if i not in picked]
        values = [0.0] * n
        for i in rest:
            subset = [*picked, i]
            values[i] = float(determinant([[kernel[a][b] for b in subset] for a in subset]))
        if max(values[i] for i in rest) <= zero:
            values = [kernel[i][i] for i in range(n)]
        picked.append(first_best(values, rest))
    return set(picked)


def changes(features: Sequence[Matrix]) -> list[list[float]]:
    """1 - cosine with the view before, infinite in the first view."""
    return [
        [1 - cosine(x, features[v - 1][p]) if v else math.inf for p, x in enumerate(view)]
        for v, view in enumerate(features)
    ]


def vidcom2_similarities(features: Sequence[Matrix]) -> tuple[list[list[float]], list[list[float]]]:
    tokens = [x for view in features for x in view]
    channels = range(len(tokens[0]))
    center = [mean([x[c] for x in tokens]) for c in channels]
    variance = [mean([(x[c] - center[c]) ** 2 for x in tokens]) for c in channels]
    half = max(1, len(channels) // 2)
    quiet = sorted(channels, key=lambda c: (variance[c], c))[:half]

    def unit(x: Vector) -> list[float]:
        length = math.sqrt(math.fsum(x[c] ** 2 for c in quiet))
        return [x[c] / length if length else 0.0 for c in quiet]

    def likeness(x: Vector, y: Vector) -> float:
        square = math.fsum((a - b) ** 2 for a, b in zip(x, y, strict=True))
        return math.fsum(math.exp(-square / (2 * scale)) for scale in (0.125, 0.25, 0.5, 1.0, 2.0))

    units = [[unit(x) for x in view] for view in features]
    video = [mean(of_channel) for of_channel in zip(*(x for view in units for x in view), strict=True)]
    of_views = [[mean(of_channel) for of_channel in zip(*view, strict=True)] for view in units]
    return (
        [[likeness(x, video) for x in view] for view in units],
        [[likeness(x, of_view) for x in view] for view, of_view in zip(units, of_views, strict=True)],
    )


def vidcom2_wanted(to_video: Matrix, count: int) -> list[float]:
    """Patches a view should have, before they are made whole: R (1 + p - mean p) of its own, R = count / all."""
    p = softmax([-mean(row) / 0.01 for row in to_video])
    rate = count / sum(len(row) for row in to_video)
    return [rate * (1 + p_v - mean(p)) * len(row) for p_v, row in zip(p, to_video, strict=True)]

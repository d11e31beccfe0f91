"""Strategies at equal average budgets: what keeps a fixed count is told it, what compares with a threshold is tuned.

Thresholds are set on clips that are not asked about, and no answer is looked at; what was really kept of the clips that
are asked about is reported beside what was asked for.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import cast

import numpy as np

from occam.config import OccamToken, Pruning, Systematic
from occam.engine import Engine
from occam.errors import InvalidInput
from pipelines.evaluation.budgets import lambda1_for, occam_at, systematic_at
from pipelines.evaluation.harness.plan import CONTROL, FLOOR, FULL, Option, Plan, Spec
from pipelines.evaluation.material import Progress, Sample, counted

STEPS = 14
"""Halvings of a threshold's range."""
OUTCOMES = {"dtd": ("tau", -1.0, 1.0)}
"""Strategies that prune in the tower by one option, which keeps the more the larger it is, and its range."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A strategy at one budget, by the options that meet it; without a budget, everything or nothing is kept.

    cut: the decoder layer before which it prunes first; None where it does not prune there
    """

    strategy: str
    budget: float | None
    name: str
    options: dict[str, Option] = field(default_factory=dict)
    cut: int | None = None

    @property
    def label(self) -> str:
        """Unique in an evaluation."""
        return self.strategy if self.budget is None else f"{self.strategy} at {self.budget:g}"

    def pruning(self, engine: Engine) -> Pruning:
        """What the engine makes of it."""
        return _pruning(engine, self.name, self.options)


def settings_of(engine: Engine, plan: Plan, tuning: Sequence[Sample], progress: Progress) -> list[Setting]:
    """Every strategy at every budget, and the floor at every cut; InvalidInput for what the model cannot run."""
    settings = [
        Setting(strategy=spec.label, budget=budget, name=spec.name, options=options, cut=_cut(engine, spec, options))
        for spec in plan.strategies
        for budget, options in _matched(engine, spec, plan, tuning, progress)
    ]
    cuts = {each.cut for each in settings if each.cut} - {each.cut for each in settings if each.name == FLOOR}
    return settings + [
        Setting(strategy=f"{FLOOR}:cut={cut}", budget=None, name=FLOOR, options={"cut": cut}, cut=cut)
        for cut in sorted(cuts)
    ]


def _matched(
    engine: Engine, spec: Spec, plan: Plan, tuning: Sequence[Sample], progress: Progress
) -> list[tuple[float | None, dict[str, Option]]]:
    options = dict(spec.options)
    if spec.name in (FULL, FLOOR):
        _pruning(engine, spec.name, options)
        return [(None, options)]
    if spec.name == "occam":
        found = _occam(engine, spec, plan.budgets, _tuned(spec, tuning, progress))
    elif spec.name == "systematic":
        base = cast(Systematic, _pruning(engine, spec.name, options | {"mass": 1.0}))
        tuned = systematic_at(engine, base, _tuned(spec, tuning, progress)(), plan.budgets)
        found = [{**options, "mass": each.mass} for each in tuned]
    elif spec.name in OUTCOMES:
        found = _bisected(engine, spec, *OUTCOMES[spec.name], plan.budgets, _tuned(spec, tuning, progress))
    else:
        seeded: dict[str, Option] = {"seed": plan.seed} if spec.name == CONTROL else {}
        found = [seeded | options | {"budget": budget} for budget in plan.budgets]
        for each in found:
            _pruning(engine, spec.name, each)
    return list(zip(plan.budgets, found, strict=True))


def _tuned(spec: Spec, tuning: Sequence[Sample], progress: Progress) -> Callable[[], list[Sample]]:
    """The samples, their progress told at every pass over them."""
    if not tuning:
        raise InvalidInput(f"{spec.label} is set on clips that are not asked about, and there is none.", "task")
    return lambda: list(counted(f"budgets of {spec.label}", tuning, progress))


def _occam(
    engine: Engine, spec: Spec, budgets: Sequence[float], samples: Callable[[], list[Sample]]
) -> list[dict[str, Option]]:
    options = dict(spec.options)
    pruning = cast(OccamToken, _pruning(engine, "occam", options))
    if options.get("lambda2") == 0 and pruning.rule not in ("top_p", "top_k"):
        alone = [lambda1_for(engine, pruning, samples(), budget) for budget in budgets]
        return [options | _written_out(each) for each in alone]
    return [options | _written_out(each) for each in occam_at(engine, pruning, samples(), budgets)]


def _written_out(pruning: OccamToken) -> dict[str, Option]:
    """All that a calibration decides: another one made later must not change what an evaluation goes on with."""
    names = ("lambda1", "lambda2", "cut", "register", "rule", "evaluators")
    return {name: getattr(pruning, name) for name in names}


def _bisected(
    engine: Engine,
    spec: Spec,
    option: str,
    low: float,
    high: float,
    budgets: Sequence[float],
    samples: Callable[[], list[Sample]],
) -> list[dict[str, Option]]:
    """The option between `low` and `high` that comes closest to each budget; it keeps the more the larger it is."""
    options = dict(spec.options)
    shares: dict[float, float] = {}

    def share(value: float) -> float:
        if value not in shares:
            shares[value] = _kept(engine, _pruning(engine, spec.name, options | {option: value}), samples())
        return shares[value]

    def closest(budget: float) -> float:
        below, above = low, high
        for _ in range(STEPS):
            middle = (below + above) / 2
            below, above = (middle, above) if share(middle) < budget else (below, middle)
        return min((below, above), key=lambda value: abs(share(value) - budget))

    return [options | {option: closest(budget)} for budget in budgets]


def _cut(engine: Engine, spec: Spec, options: dict[str, Option]) -> int | None:
    if options.get("lambda2") == 0:
        return None
    return next(iter(engine.cuts(_pruning(engine, spec.name, options))), None)


def _kept(engine: Engine, pruning: Pruning, samples: Sequence[Sample]) -> float:
    """Share of the patches that the states keep, over all questions."""
    counts = [
        (len(sample.questions) * state.stage1, len(sample.questions) * state.encoded)
        for sample in samples
        for state in [engine.state_of(sample.frames(), pruning)]
    ]
    return float(np.divide(*np.sum(counts, axis=0)))


def _pruning(engine: Engine, name: str, options: dict[str, Option]) -> Pruning:
    # Every strategy takes options of its own, which only the engine knows.
    make: Callable[..., Pruning] = engine.pruning
    return make(name, **options)

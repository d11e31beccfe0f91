"""The premise check: whether a register can be this model's reference, by what it does and by an ablation of it.

At equal average budgets, all else fixed, stage II's rules compete. The published one is the default unless an adaptive
one answers more right beyond its interval; what keeps a fixed count, or draws, is a control and never the default.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from occam.config import OccamToken, RegisterMode, Rule
from occam.registers import RegisterReport
from pipelines.evaluation.attention import AttentionFacts, Share
from pipelines.evaluation.statistics import Estimate, estimate
from pipelines.evaluation.trials import Trial

FALLBACKS: tuple[RegisterMode, ...] = ("zero_token", "mean_threshold")
RULES: tuple[Rule, ...] = ("register", "mean", "first_token", "top_p", "top_k")
"""The published one first: it stays the default unless another is told from it."""
FIXED: Rule = "top_k"

Candidates = Mapping[RegisterMode, Sequence[Rule]]
"""What competes, in the order that breaks ties: of every source of the reference the rules that are tried with it."""


def candidates(accepted: bool, known: bool) -> Candidates:
    """For a model with accepted register neurons or without; rules compete where answers are `known` alone."""
    if not known:
        return dict.fromkeys(["neurons"] if accepted else FALLBACKS, ("register",))
    if accepted:
        return {"neurons": RULES, "zero_token": ("register",), "mean_threshold": ("register",)}
    return {"zero_token": RULES, "mean_threshold": ("register",)}


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Which of the trials names the default; `published` is the trial of the published rule.

    ahead: the controls that did better beyond their interval, with how much better, paired over clips
    """

    chosen: Trial
    published: Trial
    ahead: tuple[tuple[Trial, Estimate], ...]

    @classmethod
    def of(cls, trials: Sequence[Trial]) -> "Verdict":
        """By right answers where they are known, else by how few views stage I keeps whole or not at all.

        Of what is better than the published rule beyond the 95 % interval of their difference, the best.
        """
        published, *others = [trial for trial in trials if not _is_control(trial)]
        if published.right is None:
            chosen = min((published, *others), key=lambda trial: trial.kept.all_or_nothing)
            return cls(chosen=chosen, published=published, ahead=())
        chosen = max((published, *(t for t, _ in _ahead(others, published))), key=lambda trial: trial.accuracy)
        controls = [trial for trial in trials if _is_control(trial)]
        return cls(chosen=chosen, published=published, ahead=_ahead(controls, chosen))

    @property
    def warnings(self) -> list[str]:
        """A sentence on each control that did better."""
        return [
            f"warning: {trial.name}, a control and never the default, answered {100 * lead.mean:.1f} points more right "
            f"than {self.chosen.name} (95 % interval {100 * lead.low:.1f} to {100 * lead.high:.1f}, paired)"
            for trial, lead in self.ahead
        ]


def described(found: RegisterReport) -> str:
    """The finder's acceptance statistics, to be read."""
    verdict = f"{len(found.neurons)} accepted" if found.accepted else "none that tame the norms and draw attention"
    return "\n".join(
        [
            f"register neurons: {verdict}",
            f"  largest patch norm over the inliers' limit: {found.largest_norm_before:.2f} before, "
            f"{found.largest_norm_after:.2f} after",
            f"  effective patches that are attended to: {found.n_eff_before:.1f} before, {found.n_eff_after:.1f} "
            f"after; the register's share of that attention: {found.register_share:.3f}",
        ]
    )


def described_facts(facts: AttentionFacts) -> str:
    """What the register gets, and where attention goes, to be read."""
    lines = [
        f"the register's share of attention, nothing pruned: stage I {_share(facts.register1)} over "
        f"{facts.register1.n} views, stage II {_share(facts.register2)} over {facts.register2.n} questions"
    ]
    for score, told, value in (
        ("s1", "patches that show an object from background", facts.auc1),
        ("s2", "patches of the object asked about from all others", facts.auc2),
    ):
        if value:
            lines.append(f"AUC of {score}, telling {told}: {value.mean:.3f} over {value.n} clips")
    return "\n".join(lines)


def statistics_of(
    unpruned: Trial, trials: Sequence[Trial], verdict: Verdict, facts: AttentionFacts
) -> dict[str, float]:
    """What the artefact remembers of the ablation and of the facts behind it."""
    chosen = verdict.chosen
    known = {
        "accuracy": chosen.accuracy,
        "accuracy_unpruned": unpruned.accuracy,
        "accuracy_published": verdict.published.accuracy,
        "auc1": facts.auc1.mean if facts.auc1 else float("nan"),
        "auc2": facts.auc2.mean if facts.auc2 else float("nan"),
        **{f"accuracy_{trial.name}": trial.accuracy for trial in trials},
    }
    return {
        "stage1_kept": chosen.kept.stage1 / chosen.kept.encoded,
        "stage2_kept": chosen.kept.stage2 / chosen.kept.encoded,
        **{f"spread_{trial.name}": trial.kept.spread for trial in trials},
        "all_or_nothing": chosen.kept.all_or_nothing,
        "questions": chosen.questions,
        "register_share1": facts.register1.mean,
        "register_variation1": facts.register1.variation,
        "register_share2": facts.register2.mean,
        "register_variation2": facts.register2.variation,
        **{name: value for name, value in known.items() if not np.isnan(value)},
    }


def remembered(found: RegisterReport) -> dict[str, float]:
    """What the artefact remembers of the finder."""
    return {f"finder_{name}": float(value) for name, value in asdict(found).items() if name != "neurons"}


def _is_control(trial: Trial) -> bool:
    return not isinstance(trial.pruning, OccamToken) or trial.pruning.rule == FIXED


def _ahead(trials: Sequence[Trial], of: Trial) -> tuple[tuple[Trial, Estimate], ...]:
    """Those that did better than a trial beyond their interval, and by how much, a clip's questions taken together."""
    if of.right is None:
        return ()
    known = [(trial, trial.right) for trial in trials if trial.right is not None]
    leads = [(trial, estimate(right.astype(float) - of.right.astype(float))) for trial, right in known]
    return tuple((trial, lead) for trial, lead in leads if lead.low > 0)


def _share(share: Share) -> str:
    return f"{share.mean:.2%} (coefficient of variation {share.variation:.2f})"

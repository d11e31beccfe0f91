"""A model card as Markdown."""

from pipelines.evaluation.attention import AttentionFacts, Share
from pipelines.evaluation.card_measures import Card
from pipelines.evaluation.markdown import interval, table
from pipelines.evaluation.origin import Origin
from pipelines.evaluation.renderer import FIRST_TEST_SEED
from pipelines.evaluation.statistics import Estimate

PATCHES = ("patches encoded", "kept by stage I", "kept by stage II")


def markdown_of(card: Card, origin: Origin) -> str:
    """The whole card."""
    parts = [
        _main(card),
        _unseen(card),
        _images(card),
        _attention(card.attention, card.sinks),
        _reference(card),
        f"Made by {origin}.",
    ]
    return "\n\n".join(part for part in parts if part)


def _main(card: Card) -> str:
    unpruned = card.ways[0]
    per_kind = next(iter(unpruned.kinds.values())).n
    patches = [way.patches and [f"{count:.1f}" for count in way.patches] for way in card.ways]
    rows = [
        *([kind, *(interval(way.kinds[kind]) for way in card.ways)] for kind in unpruned.kinds),
        ["**mean of kinds**", *(f"**{interval(way.mean)}**" for way in card.ways)],
        *([name, *(each[at] if each else "" for each in patches)] for at, name in enumerate(PATCHES)),
    ]
    return (
        f"Exact match in per cent with 95 % intervals, {per_kind} questions a kind ({unpruned.mean.n} in all, on "
        f"{card.scenes} test scenes from seed {FIRST_TEST_SEED:,} on, 1-4 objects of seen pairs):\n\n"
        + table(["kind", *(way.name for way in card.ways)], rows)
    )


def _unseen(card: Card) -> str:
    rows = [
        *([kind, str(share.n), interval(share)] for kind, share in card.unseen.kinds.items()),
        ["**mean of kinds**", str(card.unseen.mean.n), f"**{interval(card.unseen.mean)}**"],
        ["the same kinds on seen pairs", str(card.seen.n), interval(card.seen)],
    ]
    return "Questions about objects of pairs that training never showed, unpruned:\n\n" + table(
        ["kind", "n", "unpruned"], rows
    )


def _images(card: Card) -> str:
    if card.images is None:
        return "The model takes no images."
    rows = [
        *([kind, str(share.n), interval(share)] for kind, share in card.images.kinds.items()),
        ["**mean of kinds**", str(card.images.mean.n), f"**{interval(card.images.mean)}**"],
    ]
    return "Images (scenes of one frame), unpruned:\n\n" + table(["kind", "n", "unpruned"], rows)


def _attention(facts: AttentionFacts, sinks: Estimate) -> str:
    rows = [
        *(
            [f"AUC of {score}", _plain(auc), f"{auc.n} clips"]
            for score, auc in (
                ("s1: patches that show an object against background", facts.auc1),
                ("s2: patches of the asked object against all others", facts.auc2),
            )
            if auc
        ),
        ["zero token's share of attention, stage I", _share(facts.register1), f"{facts.register1.n} views"],
        ["zero token's share of attention, stage II", _share(facts.register2), f"{facts.register2.n} questions"],
        ["the same of the turn's first token, stage II", _share(facts.opening2), f"{facts.opening2.n} questions"],
        ["the same of the first prompt token, stage II", _share(facts.prompt2), f"{facts.prompt2.n} questions"],
        ["largest patch norm over the median, last used tower block", _plain(sinks), f"{sinks.n} views"],
    ]
    return "Attention, with the zero token in place and nothing pruned:\n\n" + table(["fact", "value", "over"], rows)


def _reference(card: Card) -> str:
    rule = card.pruning
    return (
        f"The calibration chose the reference `{rule.register}`, rule `{rule.rule}`, before layer {rule.cut}, with "
        f"lambda1 {rule.lambda1:.4g} and lambda2 {rule.lambda2:.4g}."
    )


def _plain(value: Estimate) -> str:
    return f"{value.mean:.3f} [{value.low:.3f}, {value.high:.3f}]"


def _share(share: Share) -> str:
    return f"{100 * share.mean:.2f} %, coefficient of variation {share.variation:.2f}"

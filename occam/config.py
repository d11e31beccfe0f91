"""What can be chosen: frozen keyword-only dataclasses, validated when made, mutated by nobody."""

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args, get_origin, get_type_hints

from occam.errors import InvalidInput

RegisterMode = Literal["neurons", "zero_token", "mean_threshold"]
Evaluators = Literal["question", "turn"]
Rule = Literal["register", "mean", "first_token", "top_p", "top_k"]
RegisterPlacement = Literal["after_norm", "before_norm"]
Count = Literal["budget", "rank"]
Dtype = Literal["float32", "bfloat16", "float16"]
Quantization = Literal["none", "int8"]
Wire = Literal["exact", "int8"]

_MODES = {
    "register": get_args(RegisterMode),
    "evaluators": get_args(Evaluators),
    "rule": get_args(Rule),
    "placement": get_args(RegisterPlacement),
}


@dataclass(frozen=True, kw_only=True)
class Pruning:
    """A strategy and its settings; `name` is what requests call it.

    late: settings that act behind the prefix state only, so that states are shared over them
    """

    name: ClassVar[str]
    late: ClassVar[frozenset[str]] = frozenset()


@dataclass(frozen=True, kw_only=True)
class NoPruning(Pruning):
    """Strategy `none`: every visual token is kept, CLS tokens included, exactly as the stock model does."""

    name: ClassVar[str] = "none"


@dataclass(frozen=True, kw_only=True)
class Nothing(Pruning):
    """Strategy `nothing`: no visual token passes decoder layer `cut`, the floor of all that prunes there."""

    name: ClassVar[str] = "nothing"

    cut: int

    def __post_init__(self) -> None:
        _check_least("cut", self.cut, 1)


@dataclass(frozen=True, kw_only=True)
class OccamToken(Pruning):
    """Strategy `occam` (arXiv 2605.29657): keep a token iff its score reaches lambda times the register's.

    lambda1: stage I, per frame, in the vision tower (eq. 6); 0 keeps all
    lambda2: stage II, per question, before decoder layer `cut` (eq. 17); 0 keeps all
    cut: decoder layers that run on all stage I survivors; layer cut - 1 (0-based) scores
    register: where the reference comes from; a model without register neurons names its fallback here
    rule: what stage II compares by, the register in the model all the same (ablations): lambda2 times the register's
    score, the mean score or the first token's; or the best tokens that hold a share lambda2 of all score (`top_p`), or
    a share lambda2 of what was encoded (`top_k`)
    evaluators: text tokens that score: the question's own, or all of the turn's (template tokens included)
    min_tokens: stage II keeps at least so many, by score
    keep_cls: pass CLS tokens to the language model as the stock model does (they are then never pruned)
    placement: where the tower's register token enters: behind `pre_layrnorm` (a zero there) or in front of it
    """

    name: ClassVar[str] = "occam"
    late: ClassVar[frozenset[str]] = frozenset({"lambda2", "rule", "evaluators", "min_tokens"})

    lambda1: float
    lambda2: float
    cut: int
    register: RegisterMode
    rule: Rule = "register"
    evaluators: Evaluators = "turn"
    min_tokens: int = 1
    keep_cls: bool = False
    placement: RegisterPlacement = "after_norm"

    def __post_init__(self) -> None:
        for field_name in ("lambda1", "lambda2"):
            value = getattr(self, field_name)
            if not 0 <= value < float("inf"):
                raise InvalidInput(f"{field_name} must be a finite number of at least 0, got {value}.", field_name)
        _check_least("cut", self.cut, 1)
        _check_least("min_tokens", self.min_tokens, 0)
        for field_name, known in _MODES.items():
            _check_known(field_name, getattr(self, field_name), known)


@dataclass(frozen=True, kw_only=True)
class Budgeted(Pruning):
    """Settings of a strategy that keeps a fixed count.

    budget: patches kept, up to 1 as a share of the encoded ones, above as their number
    """

    budget: float

    def __post_init__(self) -> None:
        if not 0 < self.budget < float("inf"):
            raise InvalidInput(f"budget must be a finite number above 0, got {self.budget}.", "budget")


@dataclass(frozen=True, kw_only=True)
class LateBudgeted(Budgeted):
    """The same before decoder layer `cut`, by what the layers in front of it show: one state serves all questions."""

    late: ClassVar[frozenset[str]] = frozenset({"budget"})

    cut: int

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_least("cut", self.cut, 1)


@dataclass(frozen=True, kw_only=True)
class Random(Budgeted):
    """Strategy `random`, the control: a seeded draw before decoder layer `cut`, or in front of all of them."""

    name: ClassVar[str] = "random"

    seed: int = 0
    cut: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_least("cut", self.cut, 0)
        if not SEEDS[0] <= self.seed <= SEEDS[1]:
            raise InvalidInput(f"seed must lie in {SEEDS[0]}..{SEEDS[1]}, got {self.seed}.", "seed")


@dataclass(frozen=True, kw_only=True)
class Uniform(Budgeted):
    """Strategy `uniform`, the other control: every so many-th patch, before decoder layer `cut` or in front of all."""

    name: ClassVar[str] = "uniform"

    cut: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_least("cut", self.cut, 0)


@dataclass(frozen=True, kw_only=True)
class FastV(LateBudgeted):
    """Strategy `fastv` (arXiv 2403.06764): most attended by the last token at layer cut - 1."""

    name: ClassVar[str] = "fastv"

    cut: int = 2


@dataclass(frozen=True, kw_only=True)
class IWP(LateBudgeted):
    """Strategy `iwp` (arXiv 2604.00757): largest and least duplicate implicit weights at the input of layer `cut`."""

    name: ClassVar[str] = "iwp"

    cut: int = 4


@dataclass(frozen=True, kw_only=True)
class SparseVLM(Budgeted):
    """Strategy `sparsevlm` (arXiv 2410.04417): by the text tokens that see, before several layers.

    budget: on average over the layers behind the first cut
    count: what a cut keeps: its share of the budget, or no more than the rank of those text tokens' attention, as the
    paper's code for Video-LLaVA does (the budget is then an upper bound, and 1 is none)
    cuts: those layers; none scales the paper's 2, 6 and 15 of 32 to the model's depth, and is layer 1 for `rank`
    """

    name: ClassVar[str] = "sparsevlm"
    late: ClassVar[frozenset[str]] = frozenset({"budget"})

    count: Count = "budget"
    cuts: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_known("count", self.count, get_args(Count))
        if any(cut < 1 for cut in self.cuts) or sorted(set(self.cuts)) != list(self.cuts):
            raise InvalidInput(f"cuts must ascend from at least 1, got {list(self.cuts)}.", "cuts")


@dataclass(frozen=True, kw_only=True)
class VisionZip(Budgeted):
    """Strategy `visionzip` (arXiv 2412.04467): dominant patches of each view, and some context.

    budget: of each view
    dominant: share of the kept ones that are the most attended, the rest stand evenly among the others
    merge: those others take up all that is dropped, as in the paper; only where positions have one axis
    """

    name: ClassVar[str] = "visionzip"

    dominant: float = 54 / 64
    merge: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_share("dominant", self.dominant)


@dataclass(frozen=True, kw_only=True)
class DivPrune(Budgeted):
    """Strategy `divprune` (arXiv 2503.02175): the most diverse projected patches, max-min by cosine."""

    name: ClassVar[str] = "divprune"


@dataclass(frozen=True, kw_only=True)
class CDPruner(Budgeted):
    """Strategy `cdpruner` (arXiv 2506.10967): diverse patches relevant to the question, whose state is that question's.

    theta: how much relevance weighs against diversity; question: filled in when it is asked
    """

    name: ClassVar[str] = "cdpruner"

    theta: float = 0.5
    question: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.theta < 1:
            raise InvalidInput(f"theta must lie in [0, 1), got {self.theta}.", "theta")


@dataclass(frozen=True, kw_only=True)
class EVS(Budgeted):
    """Strategy `evs` (efficient video sampling, arXiv 2510.14624): what changed most since the view before."""

    name: ClassVar[str] = "evs"


@dataclass(frozen=True, kw_only=True)
class VidCom2(Budgeted):
    """Strategy `vidcom2` (arXiv 2505.14454): what is least like its video and its frame, more from unique frames."""

    name: ClassVar[str] = "vidcom2"


@dataclass(frozen=True, kw_only=True)
class DTD(Pruning):
    """Strategy `dtd` (TimeChat-Online, arXiv 2504.17343): what differs from the view before; the count is an outcome.

    tau: cosine with the same patch of the view before from which on a patch is dropped
    """

    name: ClassVar[str] = "dtd"

    tau: float = 0.5

    def __post_init__(self) -> None:
        if not -1 <= self.tau <= 1:
            raise InvalidInput(f"tau must lie in -1..1, got {self.tau}.", "tau")


@dataclass(frozen=True, kw_only=True)
class Systematic(Pruning):
    """Strategy `systematic`, ours: as many as hold a share of the evidence, sampled evenly along it.

    mass: that share of all scores before decoder layer `cut`
    """

    name: ClassVar[str] = "systematic"
    late: ClassVar[frozenset[str]] = frozenset({"mass"})

    mass: float
    cut: int

    def __post_init__(self) -> None:
        _check_share("mass", self.mass)
        _check_least("cut", self.cut, 1)


STRATEGIES: dict[str, type[Pruning]] = {
    kind.name: kind
    for kind in (
        OccamToken,
        NoPruning,
        IWP,
        VisionZip,
        SparseVLM,
        FastV,
        DivPrune,
        CDPruner,
        EVS,
        VidCom2,
        DTD,
        Random,
        Uniform,
        Nothing,
        Systematic,
    )
}
"""Every strategy by the name that requests use."""


def check_kind(strategy: type[Pruning], option: str, value: object) -> None:
    """InvalidInput where an option's value, which may come from anywhere, is not of the kind that its field has."""
    wanted = get_type_hints(strategy)[option]
    if wanted is float:
        fits = isinstance(value, int | float) and not isinstance(value, bool)
    elif wanted is int:
        fits = isinstance(value, int) and not isinstance(value, bool)
    elif wanted is bool:
        fits = isinstance(value, bool)
    elif get_origin(wanted) is tuple:
        fits = isinstance(value, tuple) and all(type(item) is int for item in value)
    else:
        fits = isinstance(value, str)
    if not fits:
        raise InvalidInput(f"{option} of strategy {strategy.name!r} cannot be {value!r}.", option)


def _check_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise InvalidInput(f"{name} must be at least {least}, got {value}.", name)


def _check_known(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise InvalidInput(f"{name} must be one of {', '.join(known)}, got {value!r}.", name)


def _check_share(name: str, value: float) -> None:
    if not 0 < value <= 1:
        raise InvalidInput(f"{name} must lie in (0, 1], got {value}.", name)


LEAST_TEMPERATURE = 1e-3
SEEDS = (-(2**63), 2**63 - 1)


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How an answer is decoded: greedy at temperature 0, else seeded nucleus sampling.

    temperature: 0, or from `LEAST_TEMPERATURE` (below it, logits divided by it overflow) to 2; seed: within `SEEDS`
    """

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise InvalidInput(f"max_new_tokens must be at least 1, got {self.max_new_tokens}.", "max_tokens")
        if self.temperature != 0 and not LEAST_TEMPERATURE <= self.temperature <= 2:
            raise InvalidInput(
                f"temperature must be 0 or lie in {LEAST_TEMPERATURE:g}..2, got {self.temperature:g}.", "temperature"
            )
        if not 0 < self.top_p <= 1:
            raise InvalidInput(f"top_p must lie in (0, 1], got {self.top_p}.", "top_p")
        if not SEEDS[0] <= self.seed <= SEEDS[1]:
            raise InvalidInput(f"seed must lie in {SEEDS[0]}..{SEEDS[1]}, got {self.seed}.", "seed")


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Which model runs, and how.

    model: the name of an embedded model, or a path or hub name of a checkpoint
    dtype: of what is computed, and of weights that are not quantized
    quantization: int8 holds and multiplies linear maps in 8 bits, on CPUs with AVX512-VNNI, and moves answers a little
    chunk_frames: frames that one `append` takes; part of the cache key, since batching moves the last bits
    batch_views: views of every batch of the vision tower, which chunks of several requests share and blank ones fill
    up; part of the cache key too; 0: on a GPU those of a video's chunk, images alone; on a CPU each chunk by itself
    threads: torch threads; part of what makes warm and cold runs bitwise equal
    batch_sequences: answers that are decoded together at most
    batch_tokens: tokens of states and questions that one prefill packs at most, where several questions share it
    """

    model: str = "tiny-video-llava"
    device: str = "cpu"
    dtype: Dtype = "float32"
    quantization: Quantization = "none"
    chunk_frames: int = 2
    batch_views: int = 0
    threads: int = 2
    batch_sequences: int = 16
    batch_tokens: int = 8192

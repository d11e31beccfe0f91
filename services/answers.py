"""Putting an answer together from what the engine gave and what it took; the worker and `occam ask` share it."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

from occam.config import Pruning, Wire
from occam.engine import Engine
from occam.kv.embeddings import EMBEDDINGS_VERSION
from occam.kv.key import KVKey, MediumKey
from occam.stats import StageStats, Usage
from occam.tensors import PrefixState
from occam.types import Answer, Turn
from services.messages import Finished, Medium, PruningChoice, Tier


@dataclass(frozen=True, kw_only=True)
class Prefix:
    """A state, where it came from, and what it took this request to get it.

    tier: `embeddings` where those of all media came from the shared tier, and lower layers ran over them
    cached_tokens: tokens of the state whose lower layers were not computed for this request
    """

    state: PrefixState
    key: KVKey
    tier: Tier
    cached_tokens: int
    stats: tuple[StageStats, ...] = ()


def key_of(
    engine: Engine, media: Sequence[Medium], pruning: Pruning, system: str, wire: Wire = "exact", salt: str = ""
) -> KVKey:
    """The key of the state behind media: what every tier knows it by; salt: of those who share it."""
    return KVKey(
        media=tuple(
            MediumKey(
                kind=medium.kind, digest=medium.digest, frame_indices=medium.indices, decode_backend=medium.decoder
            )
            for medium in media
        ),
        facts={**engine.key_facts(pruning), "system": system},
        tenant_salt=salt,
        wire=wire,
    )


def embeddings_keys(key: KVKey) -> tuple[KVKey, ...]:
    """The keys of the embeddings of a state's media, one for each: the tower saw neither the text nor the others.

    They go exactly over any wire.
    """
    facts = {name: fact for name, fact in key.facts.items() if name != "system"} | {"embeddings": EMBEDDINGS_VERSION}
    return tuple(replace(key, media=(medium,), facts=facts, wire="exact") for medium in key.media)


def choice_of(pruning: Pruning) -> PruningChoice:
    """A resolved strategy as the choice that leads to it."""
    settings = {field.name: getattr(pruning, field.name) for field in fields(pruning)}
    settings.pop("question", None)
    return PruningChoice(strategy=pruning.name, options=settings)


def finish(
    answer: Answer,
    prefix: Prefix,
    media: Sequence[Medium],
    pruning: Pruning,
    turns: Sequence[Turn],
    evidence: bool,
) -> Finished:
    """The end of an answer.

    turns: those before this one; evidence: whether the kept patches of the frames go along
    """
    built_s = sum(stage.work_s for stage in prefix.stats if stage.stage in ("encode", "prefill_lower"))
    usage = Usage(
        prompt_tokens=answer.prompt_tokens,
        completion_tokens=answer.completion_tokens,
        visual_tokens=answer.visual_tokens,
        cached_tokens=prefix.cached_tokens,
        video_seconds=sum(medium.seconds for medium in media),
        gpu_seconds=built_s + answer.busy_s,
    )
    return Finished(
        answer=answer if evidence else replace(answer, evidence=replace(answer.evidence, frames=())),
        turns=(*turns, answer.turn),
        pruning=choice_of(pruning),
        key=prefix.key,
        cache=prefix.tier,
        approximate=prefix.state.approximate,
        usage=usage,
        stats=(*prefix.stats, *answer.stats),
    )

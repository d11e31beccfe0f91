"""The state of media in front of any question: from a cache tier, or built from embeddings that one has, or frames."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from hashlib import sha256
from typing import cast

from occam.config import Pruning, Wire
from occam.engine import Engine
from occam.kv.break_even import BreakEven
from occam.kv.key import KVKey
from occam.kv.store import MemoryStore, TieredStore
from occam.stats import StageStats
from occam.tensors import MediumTokens, PrefixState
from occam.types import Turn
from services import metrics, tracing
from services.admission import Admission, Ticket
from services.answers import Prefix, embeddings_keys, key_of
from services.background import check_cancelled
from services.engine_thread import EngineThread
from services.errors import NotCached, ReplicaLost
from services.messages import DecodedChunk, Medium, Tier
from services.progress import Audience, Meter, Tell
from services.single_flight import SingleFlight

Chunks = Callable[[Medium, int], AsyncGenerator[DecodedChunk]]


class Prefixes:
    """States of media and of conversations over them, for one engine."""

    def __init__(
        self,
        name: str,
        engine: Engine,
        thread: EngineThread,
        memory: MemoryStore,
        tiers: TieredStore,
        break_even: BreakEven,
        chunks: Chunks,
        wire: Wire,
        admission: Admission,
    ) -> None:
        """name: of the model, in metrics; break_even: learns what building takes; chunks: frames, by the decoder.

        wire: of all keys; admission: of what goes through the tower
        """
        self._name = name
        self._engine = engine
        self._thread = thread
        self._memory = memory
        self._tiers = tiers
        self._break_even = break_even
        self._chunks = chunks
        self._wire = wire
        self._admission = admission
        self._flights: SingleFlight[Prefix] = SingleFlight()
        self._audience = Audience()

    async def conversation(
        self,
        media: Sequence[Medium],
        pruning: Pruning,
        system: str,
        turns: Sequence[Turn],
        salt: str,
        may_decode: bool,
        tell: Tell,
    ) -> Prefix:
        """The state behind finished turns: of this replica's memory, else the media's state and the turns replayed.

        salt: of the key; may_decode: whether what is in no cache is built from frames, or NotCached
        tell: hears how far the media's state is, if it is built
        """
        key = key_of(self._engine, media, pruning, system, self._wire, salt)
        if not turns:
            return await self.media(media, pruning, system, salt, may_decode, tell)
        conversation_key = _behind(key, turns)
        with tracing.span("cache", occam__what="conversation") as span:
            state = await self._memory.get(conversation_key)
            span.note(occam__tier="none" if state is None else "memory")
        if state is not None:
            return Prefix(state=state, key=key, tier="memory", cached_tokens=len(state))
        prefix = await self.media(media, pruning, system, salt, may_decode, tell)
        started = time.monotonic()
        state = await self._thread.run(self._engine.replay, prefix.state, turns)
        replayed = len(state) - len(prefix.state)
        stats = StageStats(
            stage="prefill_lower",
            started_s=started,
            ended_s=time.monotonic(),
            tokens_in=replayed,
            tokens_out=replayed,
        )
        metrics.record_work(self._name, (stats,))
        tracing.stages((stats,))
        await self._memory.put(conversation_key, state)
        return replace(prefix, state=state, stats=(*prefix.stats, stats))

    async def media(
        self, media: Sequence[Medium], pruning: Pruning, system: str, salt: str, may_decode: bool, tell: Tell
    ) -> Prefix:
        """The state behind the media; requests for one key that come together build it once, and all hear of it."""
        key = key_of(self._engine, media, pruning, system, self._wire, salt)
        with self._audience.joined(key.digest, tell):
            # Apart: whoever may not decode must not stop the others, nor wait for them without having paid.
            prefix, own = await self._flights.run(
                f"{key.digest} {may_decode}", lambda: self._find_or_build(key, media, pruning, system, may_decode)
            )
        if own:
            return prefix
        return replace(prefix, tier="memory", cached_tokens=len(prefix.state), stats=())

    async def has(self, media: Sequence[Medium], pruning: Pruning, system: str, salt: str) -> bool:
        """Whether a tier has the state behind the media."""
        return await self._tiers.has(key_of(self._engine, media, pruning, system, self._wire, salt))

    async def forget(self, keys: Sequence[KVKey]) -> None:
        """Drop media's states from every tier; states of conversations are reached through them and age out."""
        for key in keys:
            await self._tiers.delete(key, embeddings_keys(key))

    async def _find_or_build(
        self, key: KVKey, media: Sequence[Medium], pruning: Pruning, system: str, may_decode: bool
    ) -> Prefix:
        with tracing.span("cache", occam__what="media") as span:
            found = await self._tiers.get(key, partial(self._engine.fits, pruning))
            span.note(occam__tier="none" if found.state is None else found.tier)
        check_cancelled()
        if found.state is not None:
            return Prefix(state=found.state, key=key, tier=cast(Tier, found.tier), cached_tokens=len(found.state))
        try:
            prefix = await self._build(key, media, pruning, system, may_decode)
        except ReplicaLost:
            prefix = await self._build(key, media, pruning, system, may_decode)
        await self._tiers.put(key, prefix.state, found.left_alone)
        return prefix

    async def _build(
        self, key: KVKey, media: Sequence[Medium], pruning: Pruning, system: str, may_decode: bool
    ) -> Prefix:
        """The state over embeddings that are there, and over frames where they are not; WorkerFull by too many."""
        keys = embeddings_keys(key)
        with tracing.span("cache", occam__what="embeddings") as span:
            lookups = await asyncio.gather(
                *(self._tiers.get_embeddings(each, self._engine.fits_media) for each in keys)
            )
            span.note(occam__found=sum(stored is not None for stored, _ in lookups), occam__of=len(lookups))
        if not may_decode and any(stored is None for stored, _ in lookups):
            raise NotCached("The state is in no cache.")
        started = time.monotonic()
        stats: list[StageStats] = []
        unknown = [medium for medium, (stored, _) in zip(media, lookups, strict=True) if stored is None]
        meter = Meter(sum(len(medium.indices) for medium in media), partial(self._audience.tell, key.digest))
        with self._admission.admit(sum(self._cost(medium) for medium in unknown)) as ticket:
            state = await self._thread.run(self._engine.begin, pruning, system)
            for medium, medium_key, (stored, wanted) in zip(media, keys, lookups, strict=True):
                if stored is not None:
                    state, work = await self._extend(state, stored, medium, pruning, meter)
                else:
                    state, tokens, work = await self._encode(state, medium, pruning, ticket, meter)
                    if wanted:
                        self._tiers.put_embeddings(medium_key, tokens)
                stats += work
        encoded = sum(stage.tokens_in for stage in stats if stage.stage == "encode")
        self._break_even.built(
            encoded=encoded,
            tokens=len(state),
            seconds=time.monotonic() - started,
            prefill_s=sum(stage.seconds for stage in stats if stage.stage == "prefill_lower"),
        )
        tier: Tier = "embeddings" if stats and not encoded else "none"
        return Prefix(state=state, key=key, tier=tier, cached_tokens=0, stats=tuple(stats))

    def _cost(self, medium: Medium) -> int:
        """Tokens that the tower will make of a medium."""
        return self._engine.visual_tokens(medium.kind, len(medium.indices), medium.height, medium.width)

    async def _extend(
        self, state: PrefixState, stored: MediumTokens, medium: Medium, pruning: Pruning, meter: Meter
    ) -> tuple[PrefixState, list[StageStats]]:
        """The state with a medium behind it whose embeddings are there; a chunk at a time, as it was encoded."""
        stats = []
        size = self._engine.chunk(pruning, len(medium.indices))
        for number, tokens in enumerate(stored.chunks):
            state, work = await self._thread.run(self._engine.extend, state, tokens, begins=number == 0)
            metrics.record_work(self._name, (work,))
            tracing.stages((work,))
            meter.add("prefill", len(medium.indices[number * size :][:size]), work.seconds)
            stats.append(work)
        return state, stats

    async def _encode(
        self, state: PrefixState, medium: Medium, pruning: Pruning, ticket: Ticket, meter: Meter
    ) -> tuple[PrefixState, MediumTokens, list[StageStats]]:
        """The state with a medium behind it, from its frames as they are decoded; and its embeddings."""
        engine, encoded = self._engine, []
        stats: list[StageStats] = []
        async with aclosing(self._chunks(medium, engine.chunk(pruning, len(medium.indices)))) as chunks:
            async for chunk in chunks:
                meter.add("decode", len(chunk.frames), chunk.stats.seconds)
                state, tokens, work = await self._thread.append(state, chunk.frames, pruning)
                encoding, prefill = work
                meter.add("encode", len(chunk.frames), encoding.seconds)
                meter.add("prefill", len(chunk.frames), prefill.seconds)
                ticket.done(tokens.encoded)
                metrics.record_work(self._name, work)
                tracing.stages(work)
                stats += (chunk.stats, *work)
                encoded.append(tokens)
        return state, MediumTokens(chunks=tuple(encoded)), stats


def _behind(key: KVKey, turns: Sequence[Turn]) -> KVKey:
    """The key of a conversation's state, in memory only: the media's, and the exact ids of the turns."""
    ids = sha256(repr([(turn.suffix_ids, turn.generated_ids, turn.closing_ids) for turn in turns]).encode())
    return replace(key, facts={**key.facts, "turns": ids.hexdigest()})

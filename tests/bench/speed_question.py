"""Seconds to the first token of one question: cold, and over a state that is there already, by where it is."""

import argparse
import asyncio
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from unittest import mock

from occam.config import Pruning
from occam.engine import prefix
from occam.engine.generation import Generation
from occam.kv.codec import decode, encode
from occam.kv.key import KVKey, MediumKey
from occam.tensors import MediaTokens, PrefixState
from occam.types import FrameBatch, Turn
from tests.bench.operations import stock_operations
from tests.bench.report import Table
from tests.bench.rounds import Rounds, alternating
from tests.bench.stock import Stock
from tests.bench.subject import Subject

STOCK, STOCK_LLM, COLD, LLM = "stock", "stock, language model", "cold", "language model"
STATES = {
    "memory": "state in this process's memory",
    "codec": "state decoded from the codec's bytes",
    "redis": "state read from Redis on this machine",
}


def measure(subject: Subject, stock: Stock, args: argparse.Namespace) -> Iterator[Table]:
    """The cold question beside the stock model, and follow-ups as shares of that."""
    inputs = stock.inputs(subject.clips[:1], [subject.question(0)])
    first = subject.asked(subject.state(), new_tokens=4)
    [answer] = subject.engine.answers([first])
    with follow_ups(subject, first.asked.state, answer.turn) as follow:
        runs = {
            STOCK: lambda: stock.generate(inputs, 1),
            COLD: subject.cold,
            STOCK_LLM: stock.llm(inputs),
            LLM: llm_alone(subject),
            **follow,
        }
        rounds = alternating(args.device, runs, args.repeats)
    yield _cold(subject, rounds, tokens=inputs["input_ids"].shape[1])
    yield _followed(rounds, list(follow), first.asked.state)


def llm_alone(subject: Subject) -> Callable[[], Generation]:
    """The cold question without its encoder, whose tokens are there."""
    tokens: dict[int, MediaTokens] = {}
    encoder = prefix.encode

    def remember(lm: object, chunks: Sequence[tuple[FrameBatch, Pruning]]) -> list[MediaTokens]:
        encoded = encoder(lm, chunks)
        tokens.update((media.offset, each) for (media, _), each in zip(chunks, encoded, strict=True))
        return encoded

    with mock.patch.object(prefix, "encode", remember):
        subject.cold()

    def run() -> Generation:
        with mock.patch.object(prefix, "encode", lambda lm, chunks: [tokens[media.offset] for media, _ in chunks]):
            return subject.cold()

    return run


@contextmanager
def follow_ups(subject: Subject, state: PrefixState, turn: Turn) -> Iterator[dict[str, Callable[[], object]]]:
    """The second question of a conversation, its first turn replayed from its ids behind a state of each origin."""

    def over(read: Callable[[], PrefixState]) -> Callable[[], object]:
        def run() -> None:
            generation = subject.asked(subject.engine.replay(read(), [turn]), number=1)
            subject.engine.start([generation])

        return run

    encoded = encode(state)
    runs = {"memory": over(lambda: state), "codec": over(lambda: decode(*encoded))}
    with redis_holding(subject, state) as read:
        yield runs | ({"redis": over(read)} if read else {})


@contextmanager
def redis_holding(subject: Subject, state: PrefixState) -> Iterator[Callable[[], PrefixState] | None]:
    """Reads the state from a Redis of our own; None where none is installed."""
    if importlib.util.find_spec("redis") is None:
        yield None
        return
    from services.private_redis import PrivateRedis, find_server
    from services.redis_store import RedisStore

    if find_server() is None:
        yield None
        return
    medium = MediumKey(kind="video", digest="noise", frame_indices=(0,), decode_backend="none")
    key = KVKey(media=(medium,), facts=subject.engine.key_facts(subject.pruning))
    server = PrivateRedis.start(4 * state.nbytes + (64 << 20), "noeviction")
    with asyncio.Runner() as runner:
        store = RedisStore(server.url, max_entry_bytes=2 * state.nbytes, stall_s=60.0, total_s=300.0)

        def read() -> PrefixState:
            found = runner.run(store.get(key))
            assert found is not None, "what was put is there"
            return found

        try:
            assert runner.run(store.put(key, state)), "it has room"
            yield read
        finally:
            runner.run(store.aclose())
            server.close()


def _cold(subject: Subject, rounds: Rounds, tokens: int) -> Table:
    """Seconds and their ratio, beside what the operations allow."""
    cut = subject.pruning.cut
    theirs, ours = stock_operations(subject.engine, subject.views, cut, tokens), subject.operations()
    rows = []
    for name, own, rival, allowed in (
        ("encode + prefill + first token", COLD, STOCK, theirs.total / ours.total),
        ("language model alone", LLM, STOCK_LLM, theirs.llm / ours.llm),
    ):
        ratio = rounds.ratio(rival, own)
        rows.append((name, rounds.median(own), rounds.median(rival), ratio, allowed, 100 * ratio / allowed))
    return Table(
        title="Cold question, to the first token",
        columns=("", "ours s", "stock s", "stock / ours", "operations allow", "% of that"),
        rows=tuple(rows),
        note=f"{tokens} tokens in the stock prompt; operations: stock {theirs.total:.3g} ({theirs.llm:.3g} in the "
        f"language model), ours {ours.total:.3g} ({ours.llm:.3g}).",
    )


def _followed(rounds: Rounds, names: list[str], state: PrefixState) -> Table:
    return Table(
        title="Follow-up question, to the first token",
        columns=("", "s", "% of cold unpruned stock"),
        rows=tuple((STATES[name], rounds.median(name), 100 * rounds.ratio(name, STOCK)) for name in names),
        note=f"The turn before it is replayed. The state has {len(state)} tokens and {state.nbytes:,} bytes.",
    )

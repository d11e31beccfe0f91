"""What section gpu measures beside the parts of section speed: ways to step, waits for the device, scoring's share."""

import argparse
import statistics
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from occam.config import Pruning
from occam.engine import Engine
from occam.engine.decoding import Decode, packed
from occam.engine.generation import Generation
from occam.models.batches import OFTEN, Batches
from occam.models.recording import CudaGraphs, Record
from occam.models.slots import Slots
from occam.types import FrameBatch
from tests.bench import overhead as cost
from tests.bench.report import Cell, Table
from tests.bench.rounds import alternating
from tests.bench.subject import Subject, launched

WAYS = ("packed", "slots", "recorded")
STEPS = 4
"""Steps compared, and timed together."""
BATCHED = ("each by itself", "shared", "recorded")
ALONE, SHARED, COMPANY, FAILURES = "from each by itself", "from shared", "moved by company", "not recorded"
ROOM = 1 << 40
"""Bytes that lanes may take here: whatever they need."""


def steps(subject: Subject, args: argparse.Namespace) -> Iterator[Table]:
    """The packed step, the step in slots, and that as it is recorded: how far apart, and how long each takes."""
    decoder, state = subject.engine.lm.decoder, subject.state()
    records: dict[str, Record] = {"slots": lambda run: run}
    if args.device.startswith("cuda"):
        records["recorded"] = CudaGraphs(torch.device(args.device))
    rows: list[tuple[Cell, ...]] = []
    for batch in args.together:
        ways: dict[str, Decode] = {"packed": partial(packed, decoder)}
        ways |= {name: Slots(decoder, batch, ROOM, record).decode for name, record in records.items()}
        running = {name: [subject.asked(state, number, 2) for number in range(batch)] for name in ways}
        for generations in running.values():
            subject.engine.start(generations)
        runs = {name: _Steps(way, running[name]) for name, way in ways.items()}
        logits = {name: run() for name, run in runs.items()}
        rounds = alternating(args.device, runs, args.repeats)
        apart = [_distance(logits[one], logits[other]) if one in logits else None for other, one in pairwise(WAYS)]
        times = [1000 * rounds.median(name) / STEPS if name in runs else None for name in WAYS]
        rows.append((str(batch), *apart, *times))
    yield Table(
        title="One step, in three ways",
        columns=("together", "slots from packed", "recorded from slots", "packed ms", "slots ms", "recorded ms"),
        rows=tuple(rows),
        note=f"Distances are of the logits of {STEPS} steps over given tokens, relative to their norm.",
    )


def batches(subject: Subject, args: argparse.Namespace) -> Iterator[Table]:
    """Half a chunk of each of two clips through the tower: each by itself, in one batch, and in a recorded one."""
    engine, half = subject.engine, max(subject.engine.config.chunk_frames // 2, subject.engine.info.group)
    chunks = [(clip.chunk(0, min(half, len(clip))), subject.pruning) for clip in subject.clips[:2]]
    views = sum(len(engine.lm.shown(media)) for media, _ in chunks)
    kinds = {"each by itself": Batches(), "shared": Batches(views)}
    if args.device.startswith("cuda"):
        kinds["recorded"] = Batches(views, CudaGraphs(torch.device(args.device)))
    engines = {name: engine.over(replace(engine.lm, batches=kind)) for name, kind in kinds.items()}
    runs = {name: partial(each.encode_together, chunks) for name, each in engines.items()}
    for run in runs.values():
        for _ in range(OFTEN):
            run()
    encoded = {name: run()[1][0].embeddings for name, run in runs.items()}
    rounds = alternating(args.device, runs, args.repeats)
    rows: list[tuple[Cell, ...]] = [
        (
            name,
            1000 * rounds.median(name),
            _distance(encoded[name], encoded["each by itself"]),
            _largest(encoded[name], encoded["shared"]),
            _moved(engines[name], *chunks),
            kinds[name].failures,
        )
        for name in runs
    ]
    rows += [(name, None, None, None, None, None) for name in BATCHED if name not in runs]
    yield Table(
        title="Batches of the tower",
        columns=("", "ms", ALONE, SHARED, COMPANY, FAILURES),
        rows=tuple(rows),
        note=f"Two chunks of {half} frames. {ALONE}: relative to the norm; {SHARED}, {COMPANY}: the largest difference "
        "of a number, in company of every size; none of either is allowed.",
    )


def _largest(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max())


def _moved(engine: Engine, company: tuple[FrameBatch, Pruning], own: tuple[FrameBatch, Pruning]) -> float:
    """How far a chunk's tokens move, alone and behind company of one view after the other."""
    (frames, pruning), group = company, engine.info.group
    alone, _ = engine.encode(*own)
    return max(
        _largest(engine.encode_together([(frames.chunk(0, count), pruning), own])[1][0].embeddings, alone.embeddings)
        for count in range(group, len(frames) + 1, group)
    )


class _Steps:
    """So many steps each time, over tokens that are given; the logits of them all."""

    def __init__(self, way: Decode, generations: Sequence[Generation]) -> None:
        self.way = way
        self.sequences = [each.prefilled.kv for each in generations]
        self.positions = [each.position for each in generations]

    @torch.inference_mode()
    def __call__(self) -> Tensor:
        logits = []
        for step in range(STEPS):
            logits.append(self.way(self.sequences, [5 + step] * len(self.sequences), self.positions))
            logits[-1].argmax(dim=-1).tolist()  # as whoever decodes does; the next step may begin behind that only
            self.positions = [position + 1 for position in self.positions]
        return torch.stack(logits)


def _distance(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm())


def waits(subject: Subject, args: argparse.Namespace) -> Iterator[Table]:
    """How often the host waits for the device, as torch itself warns of it; not on a CPU."""
    if not args.device.startswith("cuda"):
        return
    engine, pruning, state = subject.engine, subject.pruning, subject.state()
    begun, chunk = engine.begin(pruning), subject.clips[0].chunk(0, engine.config.chunk_frames)
    warm, measured = subject.asked(state, new_tokens=STEPS), subject.asked(state, new_tokens=STEPS)
    engine.answers([warm])
    parts: dict[str, Callable[[], object]] = {
        "encode + prefill of a chunk": lambda: engine.append(begun, chunk, pruning),
        "prefill of a question": lambda: engine.start([measured]),
        "a step": lambda: engine.step([measured]),
    }
    yield Table(
        title="Waits for the device",
        columns=("", "times"),
        rows=tuple((name, _waits(run)) for name, run in parts.items()),
    )


def _waits(run: Callable[[], object]) -> int:
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in caught)


def overhead(subject: Subject, args: argparse.Namespace) -> Iterator[Table]:
    """What section overhead counts, under forced masks: every region is waited for, which is never too little."""
    info = subject.engine.info
    measured = cost.Subject(
        engine=launched(subject.engine),
        pruning=subject.pruning,
        frames=subject.clips[0],
        layers=info.layers,
        cut=subject.pruning.cut,
    )
    shares = []
    for _ in range(args.repeats + 1):
        seconds, _ = cost._once(measured)
        whole = sum(seconds[name] for name in cost.PARTS) - seconds[cost.PIXELS]
        shares.append(100 * sum(seconds[name] for name in cost.OVERHEAD) / whole)
    yield Table(
        title="Scoring",
        columns=("", "% of encode + prefill"),
        rows=(("scoring + masking + compaction", statistics.median(shares[1:])),),
    )

"""Questions answered together are answered as each of them alone, whoever joins or leaves in between."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from occam.config import NoPruning, Pruning, SamplingParams
from occam.engine import Engine
from occam.engine.generation import Generation
from occam.models.packing import Pack
from occam.tensors import PrefixState
from occam.types import Answer
from tests.parity import checkpoint, checkpoint_qwen
from tests.parity.harness import build, pruning_of
from tests.parity.oracle import Rule


@dataclass
class Question:
    """One of many over states of their own; the logits it was answered by, when it is."""

    state: PrefixState
    text: str
    pruning: Pruning
    sampling: SamplingParams
    logits: list[Tensor] = field(default_factory=list)

    def generation(self, engine: Engine) -> Generation:
        self.logits = []
        return engine.generation(self.state, self.text, self.pruning, self.sampling, self.logits.append)


def questions_of(engine: Engine, random_frames: Any, cut: int) -> list[Question]:
    """Every kind of state and cut: several lengths, strategies, and turns; greedy and drawn."""
    rule = pruning_of(Rule(lambda1=1.1, lambda2=1.7, cut=cut, neurons=checkpoint.NEURONS))
    prunings = [
        NoPruning(),
        rule,
        engine.pruning("fastv", budget=7, cut=2),
        engine.pruning("sparsevlm", budget=0.5, cuts=(1, 3)),
        engine.pruning("nothing", cut=cut),
        engine.pruning("random", budget=5),
        rule,
    ]
    questions = []
    for place, pruning in enumerate(prunings):
        state = build(engine, random_frames(1 + place % 4, seed=place), pruning)
        if place % 3 == 1:
            state = engine.replay(state, [engine.turn_of("what is it ?", "a red ball", first=True)])
        text = ("what colour is the ball ?", "where", "does it go then ? and what is it that goes there ?")[place % 3]
        temperature = 0.8 if place in (2, 5) else 0.0
        sampling = SamplingParams(max_new_tokens=3 + 2 * place, temperature=temperature, seed=place)
        questions.append(Question(state, text, pruning, sampling))
    return questions


Alone = list[tuple[Answer, list[Tensor]]]


def assert_all_same(answers: Sequence[Answer], questions: Sequence[Question], alone: Alone) -> None:
    for answer, question, (expected, logits) in zip(answers, questions, alone, strict=True):
        assert_same(answer, question.logits, expected, logits)


def assert_same(ours: Answer, logits: Sequence[Tensor], theirs: Answer, expected: Sequence[Tensor]) -> None:
    assert (ours.text, ours.turn, ours.finish_reason) == (theirs.text, theirs.turn, theirs.finish_reason)
    assert ours.visual_tokens == theirs.visual_tokens
    for one, other in zip(ours.evidence.frames, theirs.evidence.frames, strict=True):
        assert (one.stage2 == other.stage2).all()
    torch.testing.assert_close(torch.stack(list(logits)), torch.stack(list(expected)), atol=1e-4, rtol=0)


@pytest.fixture(scope="module", params=["engine", "qwen_engine"])
def asked(request: pytest.FixtureRequest) -> tuple[Engine, list[Question], Alone]:
    """An engine, questions to it, and what it answers to each alone."""
    engine = request.getfixturevalue(request.param)
    kind = checkpoint if request.param == "engine" else checkpoint_qwen
    questions = questions_of(engine, kind.random_frames, 3 if request.param == "engine" else 1)
    alone = [(engine.answers([each.generation(engine)])[0], each.logits) for each in questions]
    assert len({len(answer.turn.generated_ids) for answer, _ in alone}) > 2, "they end at different steps"
    return engine, questions, alone


def test_together_as_alone(asked: tuple[Engine, list[Question], Alone]) -> None:
    engine, questions, alone = asked
    answers = engine.answers([each.generation(engine) for each in questions])
    assert_all_same(answers, questions, alone)


def test_joining_and_leaving_changes_nothing_for_the_others(
    asked: tuple[Engine, list[Question], Alone],
) -> None:
    engine, questions, alone = asked
    waiting = [each.generation(engine) for each in reversed(questions)]
    left = waiting[3]
    everyone, running = list(waiting), []
    while waiting or running:
        if waiting:
            running.append(waiting.pop())
            engine.start(running[-1:])
        running = [each for each in running if each.answer is None and each is not left]
        if running:
            engine.step(running)
    for generation, question, (expected, logits) in zip(reversed(everyone), questions, alone, strict=True):
        if generation is left:
            assert generation.answer is None
        else:
            assert generation.answer is not None
            assert_same(generation.answer, question.logits, expected, logits)


def test_a_sequence_of_another_past_is_noticed(
    asked: tuple[Engine, list[Question], Alone], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The comparison fails where sequences of a pass see one another."""
    engine, questions, alone = asked
    for module in ("turn", "decoding"):
        monkeypatch.setattr(f"occam.engine.{module}.Pack", crossed)
    answers = engine.answers([each.generation(engine) for each in questions])
    with pytest.raises(AssertionError):
        assert_all_same(answers, questions, alone)


def crossed(sequences: Sequence[Any], lengths: Sequence[int]) -> Pack:
    """A pack in which, while decoding, each sequence answers for its neighbour."""
    decoding = len(sequences) > 1 and set(lengths) == {1}
    return Pack([*sequences[1:], sequences[0]] if decoding else sequences, lengths)


def test_a_question_has_its_share_of_the_seconds(engine: Engine) -> None:
    """The passes of a batch, each divided among those in it."""
    state = build(engine, checkpoint.random_frames(2, seed=1), NoPruning())
    ticks = iter(range(10_000))
    clocked = Engine(engine.lm, engine.config, lambda: float(next(ticks)))
    sampling = SamplingParams(max_new_tokens=1)
    [alone] = [clocked.generation(state, "what", NoPruning(), sampling)]
    clocked.start([alone])
    three = [clocked.generation(state, "what", NoPruning(), sampling) for _ in range(3)]
    before = next(ticks)
    clocked.start(three)
    assert alone.busy_s > 0
    assert len({each.busy_s for each in three}) == 1
    assert 0 < sum(each.busy_s for each in three) < next(ticks) - before
    assert alone.answer is not None
    with pytest.raises(ValueError, match="has not been started"):
        clocked.step([clocked.generation(state, "what", NoPruning(), sampling)])

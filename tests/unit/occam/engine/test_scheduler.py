"""Who shares a pass with whom, and who is told what."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from occam.config import EngineConfig
from occam.engine.scheduler import Progress, Scheduler


@dataclass(eq=False)
class Asked:
    """A generation of so many steps behind its first token."""

    name: str
    steps: int = 2
    tokens: int = 10
    answer: str | None = None
    error: Exception | None = None

    def fail(self, error: Exception) -> None:
        self.error = error

    def forget(self) -> None:
        """It remembers nothing."""

    def take(self) -> None:
        assert self.answer is None, "finished ones are in no pass"
        self.steps -= 1
        if self.steps < 0:
            self.answer = f"answer of {self.name}"


@dataclass
class Passes:
    """An engine that notes its passes, and fails where one of `bad` is in one."""

    config: EngineConfig
    bad: frozenset[str] = frozenset()
    made: list[str] = field(default_factory=list)

    def start(self, generations: Sequence[Asked]) -> None:
        self._pass("start", generations)

    def step(self, generations: Sequence[Asked]) -> None:
        self._pass("step", generations)

    def _pass(self, kind: str, generations: Sequence[Asked]) -> None:
        self.made.append(f"{kind} {' '.join(each.name for each in generations)}")
        for each in generations:
            if f"{kind} {each.name}" in self.bad:
                raise MemoryError(each.name)
        for each in generations:
            each.take()


def scheduler_of(engine: Passes) -> Any:
    return Scheduler(cast(Any, engine))


def config(sequences: int = 4, tokens: int = 100) -> EngineConfig:
    return EngineConfig(threads=1, batch_sequences=sequences, batch_tokens=tokens)


def names(progress: Sequence[Progress]) -> list[str]:
    return [cast(Any, each.generation).name for each in progress]


def test_who_comes_joins_those_who_run() -> None:
    engine = Passes(config())
    scheduler = scheduler_of(engine)
    assert not scheduler.busy
    scheduler.add(Asked("a", steps=3))
    scheduler.add(Asked("b", steps=0))
    assert names(scheduler.advance()) == ["a", "b"]
    scheduler.add(Asked("c", steps=1))
    while scheduler.busy:
        scheduler.advance()
    assert engine.made == ["start a b", "step a", "start c", "step a c", "step a"]


def test_only_so_many_run_and_first_come_is_first_served() -> None:
    engine = Passes(config(sequences=2))
    scheduler = scheduler_of(engine)
    for name in "abcd":
        scheduler.add(Asked(name, steps=1))
    while scheduler.busy:
        assert len(scheduler.advance()) <= 2
    assert engine.made == ["start a b", "step a b", "start c d", "step c d"]


def test_a_prefill_packs_so_many_tokens_or_one_question() -> None:
    engine = Passes(config(tokens=25))
    scheduler = scheduler_of(engine)
    for name, tokens in (("a", 10), ("b", 15), ("c", 1), ("huge", 99), ("d", 1)):
        scheduler.add(Asked(name, steps=0, tokens=tokens))
    while scheduler.busy:
        scheduler.advance()
    assert engine.made == ["start a b", "start c", "start huge", "start d"]


def test_who_leaves_is_in_no_pass_any_more_and_makes_room() -> None:
    engine = Passes(config(sequences=2))
    scheduler = scheduler_of(engine)
    first, second, third, fourth = (Asked(name) for name in "abcd")
    for each in (first, second, third, fourth):
        scheduler.add(each)
    scheduler.advance()
    scheduler.drop(first)
    scheduler.drop(third)
    scheduler.drop(Asked("never seen"))
    while scheduler.busy:
        scheduler.advance()
    assert engine.made == ["start a b", "step b", "start d", "step b d", "step d"]


def test_a_question_that_cannot_be_prefilled_ends_no_other() -> None:
    engine = Passes(config(), bad=frozenset({"start b"}))
    scheduler = scheduler_of(engine)
    for name in "abc":
        scheduler.add(Asked(name, steps=1))
    failed = {cast(Any, each.generation).name: each.error for each in scheduler.advance()}
    assert failed == {"a": None, "b": failed["b"], "c": None}
    assert isinstance(failed["b"], MemoryError)
    while scheduler.busy:
        scheduler.advance()
    assert engine.made == ["start a b c", "start a", "start b", "start c", "step a c"]


def test_a_step_that_fails_ends_those_in_it_and_nobody_behind() -> None:
    engine = Passes(config(), bad=frozenset({"step b"}))
    scheduler = scheduler_of(engine)
    for name in "ab":
        scheduler.add(Asked(name))
    scheduler.advance()
    scheduler.add(Asked("c", steps=1))
    progress = scheduler.advance()
    assert names(progress) == ["a", "b"]
    assert [isinstance(each.error, MemoryError) for each in progress] == [True, True]
    assert scheduler.busy
    while scheduler.busy:
        scheduler.advance()
    assert engine.made == ["start a b", "step a b", "start c", "step c"]


@pytest.mark.parametrize("sequences", [1, 3, 64])
def test_everybody_gets_an_answer(sequences: int) -> None:
    engine = Passes(config(sequences=sequences))
    scheduler = scheduler_of(engine)
    everyone = [Asked(str(number), steps=number % 5) for number in range(50)]
    for place, each in enumerate(everyone):
        scheduler.add(each)
        if place % 3 == 0:
            scheduler.advance()
    while scheduler.busy:
        scheduler.advance()
    assert [each.answer for each in everyone] == [f"answer of {each.name}" for each in everyone]

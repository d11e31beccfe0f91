"""What the engine promises besides parity, on a small random checkpoint: limits, sampling, and what is streamed."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from occam.config import LEAST_TEMPERATURE, SEEDS, NoPruning, OccamToken, SamplingParams
from occam.engine import Engine
from occam.engine.sampling import draw, seeded
from occam.errors import InvalidInput, NotCalibrated, QuestionTooLong, VideoTooLarge
from occam.models.prompt import Prompt
from occam.tensors import MediumTokens, PrefixState
from occam.types import Answer, Turn
from tests.parity.checkpoint import PATCHES, random_frames, write_checkpoint
from tests.parity.harness import build, load, video_of

POSITIONS = 512
OFF = NoPruning()
NEURONS = OccamToken(lambda1=0.5, lambda2=1.0, cut=3, register="neurons")
ZERO = OccamToken(lambda1=0.5, lambda2=1.0, cut=3, register="zero_token")
FRAMES = random_frames(2)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def engine(checkpoint: Path) -> Engine:
    return load(checkpoint)


@pytest.fixture(scope="module")
def state(engine: Engine) -> PrefixState:
    return build(engine, FRAMES, OFF)


def turn(words: int) -> Turn:
    return Turn(suffix_ids=(20,), generated_ids=(21,) * (words - 1), closing_ids=(2,))


def test_a_question_may_take_every_position_and_not_one_more(engine: Engine, state: PrefixState) -> None:
    suffix, _ = engine.lm.prompt.turn_ids("what is", first=True)
    room = POSITIONS - state.next_position - len(suffix)
    pieces = engine.stream(state, "what is", OFF, SamplingParams(max_new_tokens=room))
    assert isinstance(next(pieces), str)
    with pytest.raises(QuestionTooLong, match=f"513 positions unpruned .{room + 1} of them.*has 512") as caught:
        engine.ask(state, "what is", OFF, SamplingParams(max_new_tokens=room + 1))
    assert caught.value.param == "question"


def test_what_is_built_on_an_approximate_state_is_approximate(engine: Engine) -> None:
    for pruning in (OFF, ZERO):
        begun = engine.begin(pruning)
        for approximate in (False, True):
            state, _ = engine.append(replace(begun, approximate=approximate), video_of(FRAMES), pruning)
            assert engine.replay(state, [turn(3), turn(2)]).approximate == approximate


def test_the_seconds_of_a_chunk_are_those_of_the_device(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Launches come back at once on a GPU, so what ends them must be waited for within the seconds."""
    now = 0.0

    def wait(device: str) -> None:
        nonlocal now
        assert device == "cpu"
        now += 5.0

    monkeypatch.setattr("occam.engine.engine.wait_for", wait)
    clocked = Engine(engine.lm, engine.config, lambda: now)
    _, (_, prefill) = clocked.append(clocked.begin(OFF), video_of(FRAMES), OFF)
    assert prefill.seconds == 5.0


def test_a_turn_that_passes_the_positions_is_not_replayed(engine: Engine, state: PrefixState) -> None:
    room = POSITIONS - state.next_position
    assert engine.replay(state, [turn(room)]).next_position == POSITIONS + 1, "the closing is no position of a question"
    for turns in ([turn(room + 1)], [turn(room - 1), turn(1)], [turn(100_000)]):
        with pytest.raises(QuestionTooLong, match="has 512") as caught:
            engine.replay(state, turns)
        assert caught.value.param == "messages"


def test_a_system_text_that_passes_the_positions_is_refused_before_it_is_computed(engine: Engine) -> None:
    room = POSITIONS - engine.begin(OFF).next_position
    assert engine.begin(OFF, " ".join(["what"] * room)).next_position == POSITIONS
    with pytest.raises(QuestionTooLong, match="513 positions") as caught:
        engine.begin(OFF, " ".join(["what"] * (room + 1)))
    assert caught.value.param == "system"


def test_frames_that_pass_the_positions_say_so(engine: Engine) -> None:
    begun = engine.begin(OFF)
    fit = (POSITIONS - begun.next_position) // (PATCHES + 1)
    frames = random_frames(fit + 1)
    assert len(build(engine, frames[:fit], OFF).view_pts) == fit
    with pytest.raises(
        VideoTooLarge, match=rf"takes {len(begun)} positions, .*far {(fit + 1) * 17} .*has 512"
    ) as caught:
        build(engine, frames, OFF, chunk_frames=1)
    assert caught.value.param == "max_frames"


def test_where_the_text_takes_the_room_of_the_frames_the_text_is_at_fault(engine: Engine) -> None:
    begun = engine.begin(OFF, " ".join(["what"] * 460))
    state, _ = engine.append(begun, video_of(FRAMES), OFF)
    with pytest.raises(QuestionTooLong, match=f"takes {len(begun)} positions") as caught:
        engine.append(state, video_of(FRAMES), OFF)
    assert caught.value.param == "system"


def test_register_neurons_that_are_not_there_are_no_zero_token(checkpoint: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(checkpoint, tmp_path / "copy"))
    artefact = folder / "occam.json"
    artefact.write_text(json.dumps(json.loads(artefact.read_text()) | {"neurons": []}))
    with pytest.raises(NotCalibrated, match="no register neurons"):
        load(folder)
    artefact.unlink()
    bare = load(folder)
    with pytest.raises(NotCalibrated, match="no register neurons"):
        bare.begin(NEURONS)
    assert len(bare.begin(replace(NEURONS, register="zero_token"))) > 0


@pytest.mark.parametrize(
    ("strategy", "asked"), [("occam", {}), (None, {"lambda1": 0.5}), (None, {"lambda2": 0.0})], ids=str
)
def test_a_lambda_asks_for_pruning(
    engine: Engine, checkpoint: Path, tmp_path: Path, strategy: str | None, asked: dict[str, Any]
) -> None:
    folder = Path(shutil.copytree(checkpoint, tmp_path / "copy"))
    (folder / "occam.json").unlink()
    bare = load(folder)
    assert bare.pruning() == OFF
    with pytest.raises(NotCalibrated, match="Run `occam calibrate`"):
        bare.pruning(strategy, **asked)
    assert engine.pruning(strategy, **asked) == engine.pruning("occam", **asked)
    if strategy is None:
        with pytest.raises(InvalidInput, match="'none' has no lambda"):
            engine.pruning("none", **asked)


class Spelled:
    """The model's own prompt, with answers that are spelled byte by byte: tokens cut characters in two."""

    def __init__(self, prompt: Prompt, said: str) -> None:
        self.prompt = prompt
        self.said = said.encode()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.prompt, name)

    def text(self, ids: list[int]) -> str:
        return self.said[: len(ids)].decode(errors="replace").strip()


@pytest.mark.parametrize("tokens", range(1, 11))
def test_pieces_are_tails_of_whole_characters_and_together_the_answer(
    engine: Engine, state: PrefixState, tokens: int
) -> None:
    said = "n\u00e9 \U0001f642 ok"
    lm: Any = engine.lm
    lm = replace(lm, prompt=Spelled(lm.prompt, said))
    *pieces, answer = Engine(lm, engine.config).stream(state, "what", OFF, SamplingParams(max_new_tokens=tokens))
    assert isinstance(answer, Answer)
    assert "".join(map(str, pieces)) == answer.text == said.encode()[:tokens].decode(errors="replace").strip()
    assert all(len(str(piece).strip()) == 1 for piece in pieces)
    assert not any("\ufffd" in str(piece) for piece in pieces[:-1]), "only an answer cut short ends inside a character"


def drawn(logits: torch.Tensor, params: SamplingParams, times: int) -> list[int]:
    """Tokens of one answer."""
    random = seeded(params)
    return [int(draw(logits[None], [params], [random])) for _ in range(times)]


def test_the_nucleus_is_the_fewest_likeliest_tokens_that_reach_top_p() -> None:
    logits = torch.tensor([0.1, 0.5, 0.3, 0.1]).log()

    def nucleus(top_p: float) -> set[int]:
        return set(drawn(logits, SamplingParams(temperature=1.0, top_p=top_p, seed=3), 200))

    assert nucleus(0.4) == nucleus(1e-9) == {1}
    assert nucleus(0.6) == nucleus(0.79) == {1, 2}
    assert nucleus(1.0) == {0, 1, 2, 3}


def test_the_least_temperature_is_nearly_greedy_and_a_seed_says_it_again() -> None:
    logits = torch.tensor([900.0, 1000.0, 999.0])
    assert set(drawn(logits, SamplingParams(temperature=LEAST_TEMPERATURE), 50)) == {1}
    first, other, again = (
        drawn(logits / 500, SamplingParams(temperature=2.0, seed=seed), 50) for seed in (*SEEDS, SEEDS[0])
    )
    assert first == again != other


def test_a_cached_state_fits_if_it_could_be_ones_own(engine: Engine) -> None:
    own = build(engine, FRAMES, NEURONS)
    assert engine.fits(NEURONS, own)
    assert engine.fits(NEURONS, engine.replay(own, [turn(3)]))
    assert engine.fits(OFF, build(engine, FRAMES, OFF))
    cut = own.keys[0].shape[0] - 1
    other: dict[str, PrefixState] = {
        "of another cut": build(engine, FRAMES, OFF),
        "no layers": replace(own, keys=(), values=()),
        "fewer heads": replace(own, keys=tuple(k[:cut] for k in own.keys), values=tuple(v[:cut] for v in own.values)),
        "narrower heads": replace(own, keys=tuple(k[..., 1:] for k in own.keys), values=own.values),
        "narrower": replace(own, hidden=own.hidden[:, 1:]),
        "another dtype": replace(own, hidden=own.hidden.bfloat16()),
        "more axes": replace(own, positions=own.positions.expand(3, -1)),
        "more levels": replace(own, register_sum=own.register_sum.expand(2, -1)),
        "planes": replace(own, planes=(own.hidden,)),
        "past the positions": replace(own, next_position=POSITIONS + 1),
        "out of time": replace(own, view_pts=own.view_pts * float("nan")),
    }
    assert not [name for name, state in other.items() if engine.fits(NEURONS, state)]


def test_embeddings_out_of_a_cache_are_of_the_models_shape_or_of_none(engine: Engine) -> None:
    tokens, _ = engine.encode(video_of(FRAMES), NEURONS)

    def fits(**changes: Any) -> bool:
        return engine.fits_media(MediumTokens(chunks=(tokens, replace(tokens, **changes))))

    assert fits()
    wide = tokens.embeddings.repeat(1, 2)
    for changes in (
        {"embeddings": wide},
        {"embeddings": tokens.embeddings.bfloat16()},
        {"positions": tokens.positions.repeat(3, 1)},
        {"planes": (tokens.embeddings,)},
        {"register_sum": tokens.register_sum.repeat(2, 1)},
        {"pts_seconds": torch.full_like(tokens.pts_seconds, torch.inf)},
        {"length": POSITIONS - tokens.length + 1},
    ):
        assert not fits(**changes), changes
    assert fits(length=POSITIONS - tokens.length), "what fits by itself is a video that may be too long here"
    with pytest.raises(VideoTooLarge, match="has 512"):
        engine.extend(engine.begin(OFF), replace(tokens, length=POSITIONS), begins=True)


def test_a_chunk_that_begins_none_goes_on_with_the_medium_before(engine: Engine) -> None:
    tokens, _ = engine.encode(video_of(FRAMES), OFF)
    state = engine.begin(OFF)
    for begins in (True, False, True):
        state, _ = engine.extend(state, tokens, begins)
    assert state.view_medium.tolist() == [0, 0, 0, 0, 1, 1]

"""What the bench counts is what runs, what it forces is what is kept, and its rivals are asked the same questions."""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import replace
from unittest import mock

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from occam.config import EngineConfig, NoPruning
from occam.engine import Engine, turn
from occam.models import qwen_tower
from occam.models.clip_tower import ClipTower
from occam.models.decoder import Decoder
from occam.models.packing import ATTENTION
from occam.types import FrameBatch
from tests.bench import machine
from tests.bench.forced import Forced, cut_of, forced_masks
from tests.bench.frames import noise
from tests.bench.operations import stock_operations
from tests.bench.speed_floors import encoder
from tests.bench.speed_load import ours, theirs
from tests.bench.speed_together import COLUMNS, DISTANCE, TABLES, packed, padded, together
from tests.bench.stock import Stock
from tests.bench.subject import Subject, unhurried
from tests.parity import checkpoint, checkpoint_qwen

WRITE = {"video_llava": checkpoint.write_checkpoint, "qwen3_vl": checkpoint_qwen.write_checkpoint}
SIZES = {"video_llava": (56, 56), "qwen3_vl": (96, 96)}


@pytest.fixture(scope="module", params=WRITE)
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Subject]:
    """A small random model of each family, three clips, and masks that are forced."""
    folder = tmp_path_factory.mktemp(request.param)
    WRITE[request.param](folder)
    engine = Engine.load(EngineConfig(model=str(folder), chunk_frames=4, threads=1))
    clips = tuple(noise(6, SIZES[request.param], seed) for seed in range(3))
    pruning = Forced(cut=2, register="neurons", stage1=0.4, stage2=0.1)
    with forced_masks(), unhurried(engine):
        yield Subject(engine=engine, pruning=pruning, clips=clips)


def counted(run: Callable[[], object]) -> int:
    """Operations by torch's own count; its kernels for CPUs are counted where attention is spelt out."""
    counter = FlopCounterMode(display=False)
    with sdpa_kernel(SDPBackend.MATH), counter:
        run()
    return counter.get_total_flops()


def unscored(subject: Subject) -> None:
    """One cold question, every score a zero that cost nothing: forced masks do not read them."""

    def cls_row(block: object, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return hidden.new_zeros(hidden.shape[:2]), hidden[:, :, None]

    def rows(
        _: object, layer: int, x: object, positions: object, queries: torch.Tensor, sequence: object
    ) -> torch.Tensor:
        return torch.zeros(len(queries), sequence.length(layer))

    with (
        mock.patch.object(ClipTower, "_cls_row", staticmethod(cls_row)),
        mock.patch.object(qwen_tower, "_mutual_scores", lambda block, hidden, rotary: hidden[..., 0] * 0),
        mock.patch.object(Decoder, "rows", rows),
    ):
        subject.cold()


def test_operations_are_those_that_torch_counts(subject: Subject) -> None:
    inputs = Stock(subject.engine).inputs(subject.clips[:1], [subject.question(0)])
    expected = stock_operations(subject.engine, subject.views, 2, inputs["input_ids"].shape[1]).total
    assert counted(lambda: Stock(subject.engine).generate(inputs, 1)) == expected
    assert counted(lambda: unscored(subject)) == subject.operations().total < expected


@pytest.mark.usefixtures("int8_anywhere")
def test_operations_are_the_same_in_int8(subject: Subject) -> None:
    """Which torch's count does not know."""
    engine = subject.engine
    int8 = Engine.load(replace(engine.config, quantization="int8")).lm.calibrated(engine.info.calibration)
    quantized = replace(subject, engine=engine.over(int8))
    assert quantized.operations() == subject.operations()
    assert stock_operations(quantized.engine, subject.views, 2, 9) == stock_operations(engine, subject.views, 2, 9)


def test_forced_masks_keep_what_they_say(subject: Subject) -> None:
    generation = subject.cold()
    state, mask = generation.asked.state, generation.prefilled.mask
    views = state.view_grid.prod(dim=1)
    chunks = (views[:4], views[4:]) if len(views) == 6 else (views[:2], views[2:])
    assert state.stage1 == sum(round(0.4 * int(chunk.sum())) for chunk in chunks)
    assert int(mask.keep.sum()) == round(0.1 * state.encoded)
    again = subject.cold().prefilled.mask
    assert torch.equal(mask.keep, again.keep)


@pytest.mark.parametrize(("layers", "cut"), [(32, 11), (36, 12), (8, 3), (2, 1)])
def test_the_cut_lies_at_the_same_share_of_depth(layers: int, cut: int) -> None:
    assert cut_of(layers) == cut


def test_a_decoder_without_a_place_for_the_cut_is_refused() -> None:
    with pytest.raises(SystemExit, match="at least 2 layers, got 1"):
        cut_of(1)


def test_the_rival_has_the_same_weights_and_its_own_attention(subject: Subject) -> None:
    wrapped, rival = subject.engine.lm.model, Stock(subject.engine).model
    pairs = list(zip(wrapped.parameters(), rival.parameters(), strict=True))
    assert pairs
    assert all(own is other for own, other in pairs)
    assert wrapped.model.language_model.config._attn_implementation == ATTENTION
    assert rival.model.language_model.config._attn_implementation == "sdpa"
    attention = rival.model.language_model.layers[0].self_attn
    assert attention.config is rival.model.language_model.config


def test_the_rival_is_asked_the_same(subject: Subject) -> None:
    engine, stock = subject.engine, Stock(subject.engine)
    state = engine.state_of(subject.clips[1], NoPruning())
    suffix, _ = engine.lm.prompt.turn_ids(subject.question(1), first=True)
    inputs = stock.inputs(subject.clips[:2], [subject.question(0), subject.question(1)])
    attended = inputs["attention_mask"][1].bool()
    assert inputs["input_ids"][1][attended].tolist() == [*state.ids.tolist(), *suffix]


def test_batches_of_either_side_answer_as_one_by_one(subject: Subject) -> None:
    """Every answer has its count of tokens, whatever it says; three do not divide into two."""
    stock = Stock(subject.engine)
    alone = theirs(subject, stock, 5, 1)
    assert theirs(subject, stock, 5, 2) == alone
    assert ours(subject, 5, 2) == ours(subject, 5, 1)
    assert {len(ids) for ids in alone} == {5} == {len(ids) for ids in ours(subject, 5, 3)}


def test_no_answer_ends_before_its_last_token(subject: Subject) -> None:
    engine = subject.engine
    spoken = {ours(subject, 5, 3)[0][1], theirs(subject, Stock(engine), 5, 1)[0][1]}
    stopping = Engine(replace(engine.lm, prompt=engine.lm.prompt.stopping_at(list(spoken))), engine.config)
    subject, stock = replace(subject, engine=stopping), Stock(stopping)
    stock.model.generation_config.eos_token_id = list(spoken)
    assert {len(ids) for ids in theirs(subject, stock, 5, 1)} == {5}
    assert {len(ids) for ids in ours(subject, 5, 3)} == {5}


def test_a_stock_step_continues_what_generate_began(subject: Subject) -> None:
    stock = Stock(subject.engine)
    inputs = stock.inputs(subject.clips[:1], [subject.question(0)])
    prefilled = stock.generate(inputs, 1)
    before = prefilled.past_key_values.get_seq_length()
    step = stock.steps(inputs, 2, prefilled, 2)
    with mock.patch.object(stock.model, "forward", wraps=stock.model.forward) as forward:
        step()
        step()
    fed = [call.kwargs["input_ids"] for call in forward.call_args_list]
    whole = stock.generate(inputs, 4).sequences[0, inputs["input_ids"].shape[1] :]
    assert torch.equal(torch.cat(fed, dim=1), whole.expand(2, -1))
    assert prefilled.past_key_values.get_seq_length() == before


def test_the_language_model_alone_gives_the_logits_of_the_whole(subject: Subject) -> None:
    stock = Stock(subject.engine)
    inputs = stock.inputs(subject.clips[:1], [subject.question(0)])
    with torch.inference_mode():
        whole = stock.model(**inputs).logits[:, -1:]
    run = stock.llm(inputs)
    for _ in range(2):
        torch.testing.assert_close(run(), whole, atol=1e-5, rtol=0)


def of_lengths(subject: Subject, *counts: int) -> Subject:
    """The same over clips of so many frames."""
    size = subject.clips[0].frames.shape[1:3]
    return replace(subject, clips=tuple(noise(count, size, count) for count in counts))


def test_a_padded_prefill_gives_the_logits_of_a_packed_one(subject: Subject) -> None:
    """Of clips and questions of several lengths, the longest neither first nor last; nothing of it is packed."""
    lm, subject = subject.engine.lm, of_lengths(subject, 4, 6, 2)
    asked = [subject.asked(subject.state(clip), clip).asked for clip in range(3)]
    lengths = {len(each.state) for each in asked}, {len(each.suffix) for each in asked}
    assert [len(each) for each in lengths] == [3, 3]
    sequences, expected = packed(lm, asked)
    gathered: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    with mock.patch.object(turn, "Pack", side_effect=AssertionError):
        for _ in range(2):
            rows, logits = padded(lm, asked, gathered)
            torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-4)
    assert set(gathered) == set(range(lm.decoder.layers))
    for row, sequence in zip(rows, sequences, strict=True):
        for layer in range(lm.decoder.layers):
            torch.testing.assert_close(row.kv.keys(layer), sequence.kv.keys(layer), atol=1e-5, rtol=1e-4)


def test_questions_together_are_told_by_number_and_by_lengths_of_clips(subject: Subject) -> None:
    size = subject.clips[0].frames.shape[1:3]
    args = argparse.Namespace(device="cpu", repeats=1, together=[1, 2, 3], size=size)
    one, several = together(subject, Stock(subject.engine), args)
    assert [one.title, several.title] == list(TABLES)
    for table in (one, several):
        assert table.columns == COLUMNS
        assert [row[0] for row in table.rows] == ["2", "3"]
        assert all(row[COLUMNS.index(DISTANCE)] < 1e-5 for row in table.rows)
    assert several.note.startswith("Over 6, 4, 3, 1 frames")
    clips = of_lengths(subject, 6, 4, 3)
    lengths = [packed(subject.engine.lm, [clips.asked(clips.state(clip), clip).asked])[0][0].kv for clip in range(3)]
    behind = [kv.length(subject.engine.info.layers - 1) for kv in lengths]
    assert several.rows[1][2] == pytest.approx(3 * max(behind) / sum(behind))


def test_the_encoder_is_timed_by_frames_in_one_pass(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(machine.MATRIX, "cpu", 64)
    size = subject.clips[0].frames.shape[1:3]
    passes: list[int] = []
    adapter = type(subject.engine.lm)
    inner = adapter.encode

    def counted(lm: object, chunks: list[FrameBatch], *how: object) -> object:
        passes.extend(map(len, chunks))
        return inner(lm, chunks, *how)

    monkeypatch.setattr(adapter, "encode", counted)
    args = argparse.Namespace(device="cpu", repeats=1, size=size)
    [table] = encoder(subject, Stock(subject.engine), args)
    sizes = [count for count in (1, 2, 4, 8, 16) if count % subject.engine.info.group == 0]
    assert [row[0] for row in table.rows] == ["ours", *(f"ours, {count} in one batch" for count in sizes), "stock"]
    assert passes[: 2 * (2 + len(sizes))] == 2 * [4, 2, *sizes]

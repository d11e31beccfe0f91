"""Every strategy inside the engine: what it keeps, that keeping all is the stock model, what states depend on."""

from dataclasses import fields, replace
from typing import Any

import pytest
import torch

from occam.config import STRATEGIES, CDPruner, NoPruning, OccamToken, Pruning, SamplingParams, SparseVLM
from occam.engine import Engine, prefix
from occam.errors import InvalidInput, NotCalibrated
from occam.kv.codec import decode, encode
from occam.pruning import strategy_for
from occam.pruning.selection import count_of
from occam.pruning.sparsevlm import cut_counts
from occam.tensors import PrefixState
from tests.parity import checkpoint, checkpoint_qwen
from tests.parity.harness import QUESTIONS, ask, image_of, video_of
from tests.unit.occam.pruning import references

LAYERS = 6
OUTCOMES = ("occam", "none", "nothing", "dtd", "systematic")
FIXED = tuple(name for name in STRATEGIES if name not in (*OUTCOMES, "sparsevlm"))
OVER_TIME = ("evs", "vidcom2", "dtd")
FRAMES = {"engine": checkpoint.random_frames(4), "qwen_engine": checkpoint_qwen.random_frames(4)}


@pytest.fixture(params=sorted(FRAMES))
def case(request: pytest.FixtureRequest) -> tuple[Engine, Any]:
    """An engine, and frames of a video for it."""
    return request.getfixturevalue(request.param), FRAMES[request.param]


def see(engine: Engine, frames: Any, pruning: Pruning, question: str = QUESTIONS[0]) -> tuple[PrefixState, Pruning]:
    """The state of a video for a question, appended as the strategy wants it."""
    pruning = engine.asked(pruning, question)
    video, state = video_of(frames), engine.begin(pruning)
    step = engine.chunk(pruning, len(video))
    for start in range(0, len(video), step):
        state, _ = engine.append(state, video.chunk(start, min(start + step, len(video))), pruning)
    return state, pruning


def everything(engine: Engine, name: str) -> Pruning:
    options: dict[str, dict[str, Any]] = {
        "dtd": {"tau": 1.0},
        "occam": {"lambda1": 0.0, "lambda2": 0.0},
        "systematic": {"mass": 1.0},
        "none": {},
        "nothing": {},
    }
    return engine.pruning(name, **options.get(name, {"budget": 1.0}))


@pytest.mark.parametrize("name", FIXED)
@pytest.mark.parametrize("budget", [0.25, 0.5, 7])
def test_a_budget_is_kept_to_the_patch(case: tuple[Engine, Any], name: str, budget: float) -> None:
    engine, frames = case
    pruning = engine.pruning(name, budget=budget)
    state, pruning = see(engine, frames, pruning)
    first, second = ask(engine, state, QUESTIONS, pruning, 2)
    for reply in (first, second):
        counts = reply.answer.visual_tokens
        views = len(state.view_pts)
        patches = counts.encoded // views
        wanted = views * count_of(budget, patches) if name == "visionzip" else count_of(budget, counts.encoded)
        # EVS always keeps the first view.
        assert counts.stage2 == (max(wanted, patches) if name == "evs" else wanted)
        kept = sum(int(frame.stage2.sum()) for frame in reply.answer.evidence.frames)
        assert kept == counts.stage2
        cut = strategy_for(pruning).cuts(LAYERS)
        assert counts.stage1 == (counts.encoded if cut else counts.stage2)


@pytest.mark.parametrize("name", sorted(STRATEGIES.keys() - {"nothing"}))
def test_keeping_everything_is_the_stock_model(qwen_engine: Engine, name: str) -> None:
    frames = FRAMES["qwen_engine"]
    stock = ask(qwen_engine, see(qwen_engine, frames, NoPruning())[0], QUESTIONS, NoPruning(), 3)
    pruning = everything(qwen_engine, name)
    if name == "occam":
        pruning = replace(pruning, register="mean_threshold")
    state, pruning = see(qwen_engine, frames, pruning)
    for ours, theirs in zip(ask(qwen_engine, state, QUESTIONS, pruning, 3), stock, strict=True):
        torch.testing.assert_close(ours.logits, theirs.logits, atol=1e-5, rtol=0)


def test_nothing_is_a_threshold_that_none_reaches(case: tuple[Engine, Any]) -> None:
    engine, frames = case
    nothing = engine.pruning("nothing", cut=2)
    high = OccamToken(lambda1=0.0, lambda2=1e9, cut=2, register="mean_threshold", min_tokens=0)
    for ours, theirs in zip(
        ask(engine, see(engine, frames, nothing)[0], QUESTIONS, nothing, 3),
        ask(engine, see(engine, frames, high)[0], QUESTIONS, high, 3),
        strict=True,
    ):
        counts = ours.answer.visual_tokens
        assert (counts.stage1, counts.stage2) == (counts.encoded, 0)
        assert ours.logits.equal(theirs.logits)


def test_a_systematic_sample_holds_what_top_p_counts(case: tuple[Engine, Any]) -> None:
    engine, frames = case
    sampled = engine.pruning("systematic", mass=0.4)
    assert engine.info.calibration is not None
    cut = engine.info.calibration.cut
    assert sampled == engine.pruning("systematic", mass=0.4, cut=cut)
    best = OccamToken(lambda1=0.0, lambda2=0.4, cut=cut, register="mean_threshold", rule="top_p")
    state = see(engine, frames, sampled)[0]
    [ours], [theirs] = (ask(engine, state, QUESTIONS[:1], pruning, 2) for pruning in (sampled, best))
    assert 0 < ours.answer.visual_tokens.stage2 == theirs.answer.visual_tokens.stage2
    kept = [torch.from_numpy(reply.answer.evidence.frames[0].stage2) for reply in (ours, theirs)]
    assert not kept[0].equal(kept[1])


def test_fastv_keeps_what_the_stock_model_attends_to_last(engine: Engine, stock: Any) -> None:
    frames = FRAMES["engine"]
    for cut in (1, 2, 4):
        pruning = engine.pruning("fastv", budget=9, cut=cut)
        state, _ = see(engine, frames, pruning)
        hidden = see(engine, frames, NoPruning())[0]
        visual = (hidden.patch < 0) & (hidden.view >= 0)
        assert bool(visual.any()), "the stock sequence has CLS tokens, which the strategy leaves out"
        maps = _stock_run(engine, stock, frames, pruning, state).attentions
        row = maps[cut - 1][0, :, -1].mean(dim=0)[: len(state)][state.patch >= 0]
        assert _kept(engine, state, pruning) == set(row.topk(9).indices.tolist())


@pytest.mark.parametrize(("cuts", "layer", "rank"), [((), 1, 1), ((3,), 3, 2)])
def test_sparsevlm_by_rank_keeps_as_many_as_the_stock_rows_have(
    engine: Engine, stock: Any, cuts: tuple[int, ...], layer: int, rank: int
) -> None:
    frames = FRAMES["engine"]
    pruning = engine.pruning("sparsevlm", budget=1.0, count="rank", cuts=cuts)
    state, _ = see(engine, frames, pruning)
    assert strategy_for(pruning).cuts(LAYERS) == (layer,)
    run, tokens, patches = _stock_run(engine, stock, frames, pruning, state), len(state), state.patch >= 0
    hidden = run.hidden_states[layer][0]
    rates = references.sparsevlm_raters(hidden[:tokens][patches].tolist(), hidden[tokens:].tolist())
    rows = run.attentions[layer - 1][0].mean(dim=0)[tokens:, :tokens][:, patches]
    assert references.attention_rank(rows.tolist(), rates) == rank
    best = rows[torch.tensor(rates)].mean(dim=0).topk(rank).indices.tolist()
    assert _kept(engine, state, pruning) == set(best)
    bounded = replace(pruning, budget=1.1)
    assert _kept(engine, state, bounded) == set(best[:1]), "the budget of one patch bounds the rank"


def test_visionzip_merges_what_the_stock_tower_shows(engine: Engine, stock: Any) -> None:
    frames, budget, dominant = FRAMES["engine"], 0.5, 0.75
    pruning = engine.pruning("visionzip", budget=budget, dominant=dominant, merge=True)
    state, _ = see(engine, frames, pruning)
    tower = stock.model.video_tower
    run = tower(checkpoint.pixels(frames), output_hidden_states=True, output_attentions=True)
    block = tower.encoder.layers[-2]
    entering, features = run.hidden_states[-3], run.hidden_states[-2][:, 1:]
    received = run.attentions[-2].mean(dim=1)[:, 0, 1:]
    keys = block.self_attn.k_proj(block.layer_norm1(entering))[:, 1:].unflatten(-1, (block.self_attn.num_heads, -1))
    kept = int(budget * checkpoint.PATCHES)
    counts = [[int(dominant * kept)] * 4, [kept - int(dominant * kept)] * 4]
    _, sums = references.visionzip(received.tolist(), keys.tolist(), *counts)
    flat = features.flatten(0, 1).double()
    rows = [sum(weight * flat[source] for source, weight in sums[target].items()) for target in sorted(sums)]
    expected = stock.model.multi_modal_projector(torch.stack(rows).float())
    with torch.inference_mode():
        ours = torch.cat([_composed(engine, frames, pruning, start) for start in (0, 2)])
    assert any(len(sources) > 2 for sources in sums.values())
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)
    views = state.view[state.patch >= 0] * checkpoint.PATCHES + state.patch[state.patch >= 0]
    assert views.tolist() == sorted(sums)


def _composed(engine: Engine, frames: Any, pruning: Pruning, start: int) -> torch.Tensor:
    """Embeddings of the kept patches of two frames."""
    [tokens] = prefix.encode(engine.lm, [(video_of(frames).chunk(start, start + 2), pruning)])
    return tokens.embeddings[tokens.patch >= 0]


def test_follow_ups_over_merged_patches_are_exact(engine: Engine) -> None:
    pruning = engine.pruning("visionzip", budget=0.5, merge=True)
    state, _ = see(engine, FRAMES["engine"], pruning)
    again, _ = see(engine, FRAMES["engine"], pruning)
    warm = ask(engine, decode(*encode(state)), QUESTIONS, pruning, 3)
    for ours, theirs in zip(warm, ask(engine, again, QUESTIONS, pruning, 3), strict=True):
        assert torch.equal(ours.logits, theirs.logits)
    assert engine.key_facts(pruning) != engine.key_facts(replace(pruning, merge=False))


def test_patches_of_several_axes_are_not_merged(qwen_engine: Engine) -> None:
    with pytest.raises(InvalidInput, match="cannot merge patches of") as caught:
        qwen_engine.pruning("visionzip", budget=0.5, merge=True)
    assert caught.value.param == "merge"


def _stock_run(engine: Engine, stock: Any, frames: Any, pruning: Pruning, state: PrefixState) -> Any:
    """The stock decoder over the state's tokens and a question, with its attention maps and hidden states."""
    suffix, _ = engine.lm.prompt.turn_ids(QUESTIONS[0], first=True)
    full = engine.lm.decoder.embed(torch.tensor(suffix))
    embeddings = torch.cat([_entering(engine, frames, pruning), full])
    positions = torch.cat([state.positions[0], state.next_position + torch.arange(len(suffix))])
    return stock.model.language_model(
        inputs_embeds=embeddings[None], position_ids=positions[None], output_attentions=True, output_hidden_states=True
    )


def _kept(engine: Engine, state: PrefixState, pruning: Pruning) -> set[int]:
    """Patches that the answer to the same question rests on."""
    answer = engine.ask(state, QUESTIONS[0], pruning, SamplingParams(max_new_tokens=1))
    kept = torch.cat([torch.from_numpy(frame.stage2).flatten() for frame in answer.evidence.frames])
    return set(kept.nonzero().flatten().tolist())


def _entering(engine: Engine, frames: Any, pruning: Pruning) -> torch.Tensor:
    """Embeddings of text and media as they enter the decoder."""
    tokens = turn_tokens(engine, frames, pruning)
    opening = engine.lm.decoder.embed(torch.tensor(engine.lm.prompt.prefix_ids("")))
    return torch.cat([opening, *tokens])


def turn_tokens(engine: Engine, frames: Any, pruning: Pruning) -> list[torch.Tensor]:
    strategy, video, parts = strategy_for(pruning), video_of(frames), []
    for start in range(0, len(video), 2):
        chunk = video.chunk(start, start + 2)
        [output] = engine.lm.encode([chunk], strategy.register, strategy.placement)
        keep = torch.ones_like(output.scores, dtype=torch.bool)
        parts.append(engine.lm.compose(chunk, output, keep, strategy.keep_cls).embeddings)
    return parts


def test_several_cuts_leave_the_counts_of_the_schedule_in_the_caches(case: tuple[Engine, Any]) -> None:
    engine, frames = case
    pruning = engine.pruning("sparsevlm", budget=0.6, cuts=(1, 3, 5))
    state, _ = see(engine, frames, pruning)
    asked = engine.generation(state, QUESTIONS[0], pruning, SamplingParams(max_new_tokens=2))
    engine.start([asked])
    prefilled = asked.prefilled
    total = state.encoded
    counts = cut_counts(total, float(count_of(0.6, total)), (0, 2, 4), LAYERS - 1)
    assert total > counts[0] > counts[1] > counts[2] > 0
    text = len(state) - total + len(asked.asked.suffix)
    lengths = [prefilled.kv.length(layer) - text for layer in range(LAYERS)]
    assert prefilled.mask is not None
    assert lengths == [total, counts[0], counts[0], counts[1], counts[1], counts[2]]
    assert int(prefilled.mask.keep.sum()) == counts[2]


def test_later_cuts_that_keep_all_change_nothing(case: tuple[Engine, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    engine, frames = case

    def half(total: int, average: float, cuts: tuple[int, ...], layers: int) -> tuple[int, ...]:
        del average, layers
        return (total // 2,) * len(cuts)

    monkeypatch.setattr("occam.pruning.budgeted.cut_counts", half)
    one, many = (SparseVLM(budget=0.5, cuts=cuts) for cuts in ((2,), (2, 3, 5)))
    state, _ = see(engine, frames, one)
    for ours, theirs in zip(ask(engine, state, QUESTIONS, many, 3), ask(engine, state, QUESTIONS, one, 3), strict=True):
        torch.testing.assert_close(ours.logits, theirs.logits, atol=1e-5, rtol=0)


def test_states_are_shared_over_what_acts_behind_them_and_nothing_else(engine: Engine) -> None:
    def facts(name: str, **options: Any) -> dict[str, Any]:
        return engine.key_facts(engine.pruning(name, **options))

    assert facts("fastv", budget=0.5) == facts("fastv", budget=9)
    assert facts("fastv", budget=0.5, cut=1) != facts("fastv", budget=0.5, cut=2)
    assert facts("sparsevlm", budget=0.5) == facts("sparsevlm", budget=9)
    assert facts("sparsevlm", budget=0.5) != facts("sparsevlm", budget=0.5, count="rank")
    assert facts("divprune", budget=0.5) != facts("divprune", budget=0.25)
    assert facts("random", budget=0.5, seed=1) != facts("random", budget=0.5, seed=2)
    assert facts("divprune", budget=0.5)["chunk_frames"] == "whole"
    one, other = (engine.asked(CDPruner(budget=0.5), question) for question in QUESTIONS)
    assert engine.key_facts(one) != engine.key_facts(other)
    assert facts("occam", lambda2=0.5) == facts("occam", lambda2=2.0, rule="top_p")
    for name, kind in STRATEGIES.items():
        assert kind.late <= {field.name for field in fields(kind)}, name


def test_a_strategy_that_reads_the_question_keeps_what_the_question_is_about(engine: Engine) -> None:
    pruning = CDPruner(budget=0.3, theta=0.9)
    one, other = (see(engine, FRAMES["engine"], pruning, question)[0].patch.tolist() for question in QUESTIONS)
    assert one != other


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_what_needs_the_whole_video_gets_it_or_says_so(engine: Engine, name: str) -> None:
    pruning = engine.asked(everything(engine, name), QUESTIONS[0])
    video = video_of(FRAMES["engine"])
    state, _ = engine.append(engine.begin(pruning), video.chunk(0, 2), pruning)
    whole = name in ("divprune", "cdpruner", *OVER_TIME, "random", "uniform")
    assert engine.chunk(pruning, 4) == (4 if whole else 2)
    if whole:
        with pytest.raises(InvalidInput, match="all frames of a video at once"):
            engine.append(state, video.chunk(2, 4), pruning)


@pytest.mark.parametrize("name", OVER_TIME)
def test_an_image_has_no_time_to_compare(qwen_engine: Engine, name: str) -> None:
    pruning = everything(qwen_engine, name)
    with pytest.raises(InvalidInput, match=f"'{name}' prunes video input, not image") as caught:
        qwen_engine.append(qwen_engine.begin(pruning), image_of(FRAMES["qwen_engine"][0]), pruning)
    assert caught.value.param == "strategy"


def test_options_are_checked_by_name_and_value(engine: Engine) -> None:
    wrong: list[tuple[str | None, dict[str, Any], str]] = [
        ("fastv", {}, "needs budget"),
        ("fastv", {"budget": 0.5, "lambda1": 1.0}, "has no lambda1; it takes budget, cut"),
        ("fastv", {"budget": 0.5, "cut": LAYERS}, f"cut must lie in 1..{LAYERS - 1}"),
        ("fastv", {"budget": 0.0}, "budget must be"),
        ("none", {"lambda2": 1.0}, "has no lambda2; it takes no options"),
        ("best", {}, "There is no strategy 'best'"),
        ("dtd", {"tau": 2.0}, "tau must lie in"),
        ("sparsevlm", {"budget": 0.5, "cuts": (3, 2)}, "cuts must ascend"),
        ("occam", {"rule": "guess"}, "rule must be one of"),
        ("fastv", {"budget": 0.5, "cut": 2.5}, "cut of strategy 'fastv' cannot be 2.5"),
        ("fastv", {"budget": "all"}, "budget of strategy 'fastv' cannot be 'all'"),
        ("fastv", {"budget": True}, "budget of strategy 'fastv' cannot be True"),
        ("random", {"budget": 0.5, "seed": "x"}, "seed of strategy 'random' cannot be 'x'"),
        ("random", {"budget": 0.5, "seed": 2**70}, "seed must lie in"),
        ("occam", {"keep_cls": "yes"}, "keep_cls of strategy 'occam' cannot be 'yes'"),
        ("occam", {"min_tokens": 1.5}, "min_tokens of strategy 'occam' cannot be 1.5"),
        ("sparsevlm", {"budget": 0.5, "count": "all"}, "count must be one of budget, rank, got 'all'"),
        ("sparsevlm", {"budget": 0.5, "cuts": 3}, "cuts of strategy 'sparsevlm' cannot be 3"),
        ("fastv", {"budget": 0.5, "strategy": "none"}, "has no strategy; it takes"),
    ]
    for name, options, message in wrong:
        with pytest.raises(InvalidInput, match=message):
            engine.pruning(name, **options)
    engine.pruning("fastv", budget=0.5, lambda1=None)
    with pytest.raises(NotCalibrated):
        Engine(replace(engine.lm, info=replace(engine.info, calibration=None)), engine.config).pruning(lambda1=0.5)

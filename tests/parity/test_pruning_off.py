"""Pruning off is stock transformers, for every family over one matrix of prompts.

Ids and pixels are the stock processors', logits equal the stock model's to 1e-4 in fp32, greedy ids are the same.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoTokenizer

from occam.config import NoPruning
from occam.engine.engine import Engine
from occam.engine.prefix import encode
from occam.models.packing import Pack, SequenceKV
from tests.parity.harness import QUESTIONS, Reply, ask, load, pruning_of, see
from tests.parity.matrix import BATCHES, CELLS, MATRIX, WRITERS, Inputs, following, stock_inputs
from tests.parity.oracle import Rule

OFF = NoPruning()
KEEP_ALL = pruning_of(Rule(lambda1=0, lambda2=0, cut=3, register="mean_threshold", keep_cls=True))
STEPS = 6


@dataclass(frozen=True, kw_only=True)
class Model:
    """One checkpoint in the engine and in its stock class (eager attention)."""

    engine: Engine
    stock: Any
    tokenizer: Any


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: write(tmp_path_factory.mktemp(name.replace(" ", "-"))) for name, write in WRITERS.items()}


@pytest.fixture(scope="module")
def models(folders: dict[str, Path]) -> Callable[[str], Model]:
    @cache
    def model(name: str) -> Model:
        folder = folders[name]
        stock = AutoModelForImageTextToText.from_pretrained(folder, attn_implementation="eager").eval()
        return Model(engine=load(folder), stock=stock, tokenizer=AutoTokenizer.from_pretrained(folder))

    return model


@pytest.fixture(scope="module")
def inputs(folders: dict[str, Path]) -> dict[tuple[str, str], Inputs]:
    return stock_inputs(folders)


@pytest.mark.parametrize(("name", "cell"), CELLS)
def test_a_conversation_equals_stock_generate(
    models: Callable[[str], Model], inputs: dict[tuple[str, str], Inputs], name: str, cell: str
) -> None:
    """Strategy `occam` with thresholds that every patch passes, and strategy `none`, this with a follow-up."""
    model, prompt, stock = models(name), MATRIX[name][cell], inputs[name, cell]
    out = model.stock.generate(
        **stock, max_new_tokens=STEPS, do_sample=False, output_logits=True, return_dict_in_generate=True
    )
    positions = _positions(model.stock, stock)
    for pruning, questions in ((KEEP_ALL, [prompt.question]), (OFF, [prompt.question, QUESTIONS[1]])):
        state = see(model.engine, prompt.media, pruning, system=prompt.system)
        replies = ask(model.engine, state, questions, pruning, STEPS)
        first = replies[0].answer.turn
        assert [*state.ids.tolist(), *first.suffix_ids] == stock["input_ids"][0].tolist()
        assert torch.equal(state.positions, positions[:, 0, : len(state)])
        assert state.next_position == int(positions[:, 0, len(state)].max())
        assert first.generated_ids == tuple(out.sequences[0, stock["input_ids"].shape[1] :].tolist())
        torch.testing.assert_close(replies[0].logits, torch.cat(out.logits), atol=1e-4, rtol=0)
    _assert_follow_up(name, model, stock, replies)


def _assert_follow_up(name: str, model: Model, stock: Inputs, replies: list[Reply]) -> None:
    """The second turn, against one long stock prompt."""
    first, second = (reply.answer.turn for reply in replies)
    end = model.engine.lm.prompt.end_id
    spoken = first.generated_ids[:-1] if first.generated_ids[-1] == end else first.generated_ids
    written = tuple(model.tokenizer(following(name, QUESTIONS[1]), add_special_tokens=False).input_ids)
    assert (*first.generated_ids, *first.closing_ids, *second.suffix_ids) == (*spoken, *written)
    behind = torch.tensor([[*spoken, *written, *second.generated_ids]])
    longer = {**stock, "input_ids": torch.cat([stock["input_ids"], behind], dim=1)}
    longer["attention_mask"] = torch.ones_like(longer["input_ids"])
    if "mm_token_type_ids" in stock:
        longer["mm_token_type_ids"] = torch.cat([stock["mm_token_type_ids"], torch.zeros_like(behind)], dim=1)
    with torch.no_grad():
        logits = model.stock(**longer).logits[0, -STEPS - 1 : -1]
    torch.testing.assert_close(replies[1].logits, logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", BATCHES)
def test_a_batch_of_two_lengths_equals_the_stock_model(
    models: Callable[[str], Model], inputs: dict[tuple[str, str], Inputs], name: str
) -> None:
    """Packed without padding, through the layer loop alone; the stock model pads on the left."""
    model, stock = models(name), inputs[name, "batch"]
    ids_BT, attended_BT = stock["input_ids"], stock["attention_mask"].bool()
    assert not attended_BT.all()
    positions = _positions(model.stock, stock)
    decoder = model.engine.lm.decoder
    with torch.inference_mode():
        alone = [(media, OFF) for prompt in BATCHES[name] for media in prompt.media]
        chunks = [encode(model.engine.lm, [chunk])[0] for chunk in alone]
        visual = [chunk.view >= 0 for chunk in chunks]
        visual_BT = torch.isin(ids_BT, chunks[0].ids[visual[0]])

        def filled(x_BTC: Tensor, rows: list[Tensor]) -> Tensor:
            x_BTC[visual_BT] = torch.cat([row[own] for row, own in zip(rows, visual, strict=True)])
            return x_BTC[attended_BT]

        x_TC = filled(decoder.embed(ids_BT), [chunk.embeddings for chunk in chunks])
        planes = [
            filled(decoder.embed(torch.zeros_like(ids_BT)) * 0, [chunk.planes[level] for chunk in chunks])
            for level in range(decoder.levels)
        ]
        pack = Pack([SequenceKV(decoder.layers, room=0) for _ in ids_BT], attended_BT.sum(dim=1).tolist())
        hidden = decoder.run_layers(x_TC, 0, decoder.layers, pack, positions[:, attended_BT], planes)
        logits = decoder.logits(hidden)
        # The models of 1-D positions do not take them from the mask by themselves.
        own = {} if decoder.axes > 1 else {"position_ids": positions[0]}
        expected = model.stock(**stock, **own).logits
    torch.testing.assert_close(logits, expected[attended_BT], atol=1e-4, rtol=0)


def _positions(stock: Any, inputs: Inputs) -> Tensor:
    """Stock positions of a left-padded prompt; int64 [A, B, T]."""
    if not hasattr(stock.model, "get_rope_index"):
        return (inputs["attention_mask"].cumsum(dim=1) - 1).clamp_min(0)[None]
    grids = {name: value for name, value in inputs.items() if name.endswith("_thw")}
    found: tuple[Tensor, Tensor] = stock.model.get_rope_index(
        inputs["input_ids"], inputs["mm_token_type_ids"], attention_mask=inputs["attention_mask"], **grids
    )
    return found[0]

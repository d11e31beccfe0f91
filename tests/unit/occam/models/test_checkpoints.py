"""Checkpoints as they lie on disk and on the hub: sharded, in the published key layout, by path, with their digests."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from occam.config import EngineConfig
from occam.errors import InvalidInput, UnknownModel
from occam.models.checkpoint import weights_digest
from occam.models.prompt import VICUNA, Prompt
from occam.models.registry import load_model
from tests.parity.checkpoint import write_checkpoint

SHARDS = 3


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def published(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same weights in the hub layout of Video-LLaVA-7B-hf: `*_tower.vision_model.*`, several shards, an index."""
    folder = tmp_path_factory.mktemp("published")
    for file in checkpoint.iterdir():
        if file.suffix == ".json" and file.name != "occam.json":
            (folder / file.name).write_bytes(file.read_bytes())
    weights = {
        name.replace("_tower.", "_tower.vision_model."): w
        for name, w in load_file(checkpoint / "model.safetensors").items()
    }
    names, index = sorted(weights), {}
    for shard in range(SHARDS):
        file = f"model-{shard + 1:05}-of-{SHARDS:05}.safetensors"
        part = {name: weights[name].clone() for name in names[shard::SHARDS]}
        save_file(part, folder / file, metadata={"format": "pt"})
        index |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return folder


def test_the_published_sharded_layout_loads_the_same_weights(checkpoint: Path, published: Path) -> None:
    plain = load_model(EngineConfig(model=str(checkpoint)))
    sharded = load_model(EngineConfig(model=str(published)))
    expected = dict(plain.model.named_parameters())  # type: ignore[attr-defined]
    loaded = dict(sharded.model.named_parameters())  # type: ignore[attr-defined]
    assert expected.keys() == loaded.keys()
    assert all(torch.equal(expected[name], loaded[name]) for name in expected)
    assert plain.info.calibrated
    assert not sharded.info.calibrated
    assert plain.info.digest != sharded.info.digest


def test_the_digest_of_one_file_is_its_sha256(checkpoint: Path) -> None:
    expected = hashlib.sha256((checkpoint / "model.safetensors").read_bytes()).hexdigest()
    assert weights_digest(checkpoint) == expected


def test_an_artefact_of_other_weights_is_refused(published: Path, checkpoint: Path) -> None:
    artefact = published / "occam.json"
    artefact.write_bytes((checkpoint / "occam.json").read_bytes())
    try:
        with pytest.raises(InvalidInput, match="was made for weights"):
            load_model(EngineConfig(model=str(published)))
    finally:
        artefact.unlink()


def test_an_unknown_family_and_an_unknown_name_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UnknownModel, match="'bert' are not supported"):
        load_model(EngineConfig(model=str(tmp_path)))
    with pytest.raises(UnknownModel, match=r"no model 'nobody/nothing'.*which could not be reached"):
        load_model(EngineConfig(model="nobody/nothing"))


@pytest.mark.parametrize("device", ["auto", "cuda:0,cuda:1", "cuda:99", "mps:0", "meta"])
def test_several_devices_or_one_that_is_not_here_are_refused_in_a_sentence(checkpoint: Path, device: str) -> None:
    with pytest.raises(InvalidInput, match=f"that this machine has, as cpu or cuda:0, got '{device}'") as raised:
        load_model(EngineConfig(model=str(checkpoint), device=device))
    assert raised.value.param == "device"


@pytest.mark.parametrize("token", ["<video>", "</s>"])
def test_control_tokens_in_a_text_are_refused(checkpoint: Path, token: str) -> None:
    lm = load_model(EngineConfig(model=str(checkpoint)))
    with pytest.raises(InvalidInput, match=f"question contains {token}"):
        lm.prompt.turn_ids(f"what {token} is", first=True)
    with pytest.raises(InvalidInput, match=f"system contains {token}"):
        lm.prompt.prefix_ids(token)
    with pytest.raises(InvalidInput, match=f"messages contains {token}"):
        lm.prompt.answer_ids(f"red {token}")


@pytest.mark.parametrize("text", ["<VIDEO>", "</S>", "what <Video> is", "red </S>"])
def test_a_tokenizer_that_lowers_the_case_first_lets_no_control_token_through(text: str) -> None:
    listed = ("<unk>", "</s>", "<video>", "USER:", "ASSISTANT:", "what", "red")
    words = {word: index for index, word in enumerate(listed)}
    tokenizer = Tokenizer(WordLevel(words, unk_token="<unk>"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = Lowercase(), WhitespaceSplit()
    tokenizer.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in listed[:5]])
    stock = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>")
    prompt = Prompt(stock, VICUNA, "<video>")
    control = {prompt.placeholder_id, prompt.end_id}
    assert control & set(prompt.tokenizer.encode(text, add_special_tokens=False))
    for tokenize in (prompt.prefix_ids, prompt.answer_ids, lambda question: prompt.turn_ids(question, first=False)):
        with pytest.raises(InvalidInput, match="own control token"):
            tokenize(text)


def test_a_word_that_the_tokenizer_does_not_know_is_no_control_token() -> None:
    prompt = load_model(EngineConfig(model="tiny-video-llava")).prompt
    ids, (start, stop) = prompt.turn_ids("pterodactyl", first=True)
    assert ids[start:stop] == [prompt.tokenizer.unk_token_id]

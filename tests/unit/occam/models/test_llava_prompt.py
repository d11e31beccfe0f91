"""Turns tokenized one by one against the whole stock string, with tokenizers that work as Llama's and Mistral's do."""

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from occam.models.llava import TEMPLATES
from occam.models.prompt import Prompt

SPECIAL = ("<unk>", "<s>", "</s>", "<image>")
QUESTIONS = ("What is it?", "  two  spaces", "\nand a newline", "Ünïcode 日本?", "x")
STRINGS = {
    "llama": ("USER: <image>\n<image>\n{0} ASSISTANT: {1}</s>USER: {2} ASSISTANT:", "{} "),
    "mistral": ("[INST] <image>\n<image>\n{0} [/INST] {1}</s>[INST] {2} [/INST]", "<<SYS>>\n{}\n<</SYS>>\n\n"),
}


def tokenizer(legacy: bool) -> PreTrainedTokenizerFast:
    """Sentence-piece style: a space in front (of every piece in legacy form), merges, bytes for what is unknown."""
    letters = sorted({*"▁USERASSISTANT:[/INST]<>What is it?twospacesandanewlinexBlue."})
    merges = [
        ("▁", "i"),
        ("▁", "t"),
        ("▁", "▁"),
        ("U", "S"),
        ("US", "ER"),
        ("E", "R"),
        ("▁", "US"),
        ("i", "s"),
        ("▁", "W"),
    ]
    pieces = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), *letters, *("".join(pair) for pair in merges)]
    vocabulary = {piece: at for at, piece in enumerate(dict.fromkeys(pieces))}
    bpe = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if legacy:
        bpe.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        bpe.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    bpe.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    bpe.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in SPECIAL])
    bpe.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=bpe, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


@pytest.mark.parametrize("legacy", [True, False], ids=["legacy", ""])
@pytest.mark.parametrize("name", STRINGS)
@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("system", ["", "What is it?"], ids=["", "system"])
def test_turns_are_pieces_of_the_whole_string(legacy: bool, name: str, question: str, system: str) -> None:
    prompt = Prompt(tokenizer(legacy), TEMPLATES[name], "<image>")
    image = [prompt.placeholder_id, *prompt.media_end_ids]
    suffix, (start, stop) = prompt.turn_ids(question, first=True)
    pieces = [
        *prompt.prefix_ids(system),
        *image,
        *image,
        *suffix,
        *prompt.answer_ids("Blue."),
        prompt.end_id,
        *prompt.turn_ids(question, first=False)[0],
    ]
    whole, before = STRINGS[name]
    string = (before.format(system) if system else "") + whole.format(question, "Blue.", question)
    assert pieces == prompt.tokenizer(string).input_ids
    assert prompt.tokenizer.decode(suffix[start:stop]).strip() == question.strip()

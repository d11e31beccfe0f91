"""The word-level tokenizers of the embedded models: the words of the questions, and each chat template's markers."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from tokenizers import AddedToken, Regex, Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from occam.models.prompt import CHATML, VICUNA, Format
from pipelines.evaluation.questions import vocabulary

UNKNOWN, NEWLINE = "<unk>", "\n"
TIMESTAMP = ("seconds", "<", ">", *"0123456789")
"""`<2.5 seconds>` is read sign by sign: times that no training has seen have tokens."""


@dataclass(frozen=True)
class Words:
    """A family's tokenizer: lower-cases, reads "colour" as "color", drops punctuation; markers match as written.

    special: markers, padding first; words: beside those of the questions; template: for stock `apply_chat_template`
    No token depends on its neighbours, so a prompt's ids are the ids of its parts in a row.
    """

    format: Format
    special: tuple[str, ...]
    words: tuple[str, ...]
    template: str

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The bare tokenizer."""
        words = {word: index for index, word in enumerate((*self.special, *self.words, *vocabulary()))}
        tokenizer = Tokenizer(WordLevel(words, unk_token=UNKNOWN))
        punctuation = normalizers.Replace(Regex(r"[?!.,;:'\"()]+"), " ")
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.Lowercase(), normalizers.Replace("colour", "color"), punctuation]
        )
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex("[<>0-9]"), "isolated")]
        )
        tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in self.special])
        return tokenizer

    @property
    def size(self) -> int:
        """Entries of the vocabulary."""
        return int(self.tokenizer.get_vocab_size())

    def pretrained(self) -> PreTrainedTokenizerFast:
        """The same tokenizer in the form that `AutoTokenizer` loads, chat template included."""
        return PreTrainedTokenizerFast(
            tokenizer_object=self.tokenizer,
            pad_token=self.special[0],
            eos_token=self.format.end,
            unk_token=UNKNOWN,
            additional_special_tokens=[t for t in self.special[1:] if t not in (UNKNOWN, self.format.end)],
            chat_template=self.template,
            padding_side="left",
        )

    def encode(self, text: str) -> tuple[int, ...]:
        """Ids of a text, markers included."""
        return tuple(self.tokenizer.encode(text).ids)

    def id(self, token: str) -> int:
        """The id of one token; KeyError where the vocabulary has no such token."""
        index = self.tokenizer.token_to_id(token)
        if index is None:
            raise KeyError(token)
        return index

    def ids(self, tokens: Sequence[str]) -> list[int]:
        """The ids of several tokens of the vocabulary."""
        return [self.id(token) for token in tokens]


def _text_of(content: str) -> str:
    return (
        f"{{% if {content} is string %}}{{{{ {content} }}}}{{% else %}}"
        f"{{% for part in {content} | selectattr('type', 'equalto', 'text') %}}{{{{ part['text'] }}}}{{% endfor %}}"
        "{% endif %}"
    )


def _media_of(content: str, marker: str) -> str:
    return (
        f"{{% if {content} is not string %}}"
        f"{{% for part in {content} | selectattr('type', 'in', ['video', 'image']) %}}"
        f"{{{{ {marker} }}}}{{% endfor %}}{{% endif %}}"
    )


VIDEO_LLAVA_WORDS = Words(
    format=VICUNA,
    special=("<pad>", "</s>", UNKNOWN, "<video>", "<image>", "USER:", "ASSISTANT:", NEWLINE),
    words=(),
    template=(
        "{% for message in messages %}{% if message['role'] == 'user' %}{{ 'USER: ' }}"
        + _media_of("message['content']", "'<' + part['type'] + '>\\n'")
        + _text_of("message['content']")
        + "{{ ' ' }}{% else %}{{ 'ASSISTANT: ' }}"
        + _text_of("message['content']")
        + "{{ '</s>' }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
    ),
)

QWEN3_VL_WORDS = Words(
    format=CHATML,
    special=(
        "<|endoftext|>",
        "<|im_start|>",
        "<|im_end|>",
        "<|vision_start|>",
        "<|vision_end|>",
        "<|video_pad|>",
        "<|image_pad|>",
        UNKNOWN,
        NEWLINE,
    ),
    words=("system", "user", "assistant", *TIMESTAMP),
    template=(
        "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
        + _media_of("message['content']", "'<|vision_start|><|' + part['type'] + '_pad|><|vision_end|>'")
        + _text_of("message['content']")
        + "{{ '<|im_end|>\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    ),
)

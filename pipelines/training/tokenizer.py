"""The word-level tokenizer of the embedded models: the words of the questions, and the chat template's markers."""

from functools import cache

from tokenizers import AddedToken, Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase, Replace, Sequence
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from pipelines.evaluation.questions import vocabulary

PAD, EOS, UNKNOWN, VIDEO, IMAGE, NEWLINE = "<pad>", "</s>", "<unk>", "<video>", "<image>", "\n"
USER, ASSISTANT = "USER:", "ASSISTANT:"
SPECIAL = (PAD, EOS, UNKNOWN, VIDEO, IMAGE, USER, ASSISTANT, NEWLINE)

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ 'USER: ' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] | selectattr('type', 'in', ['video', 'image']) %}"
    "{{ '<' + part['type'] + '>\n' }}{% endfor %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}{{ part['text'] }}{% endfor %}"
    "{% endif %}{{ ' ' }}"
    "{% else %}{{ 'ASSISTANT: ' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{{ part['text'] }}{% endfor %}{% endif %}{{ '</s>' }}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


@cache
def build_tokenizer() -> Tokenizer:
    """Lower-cases, reads "colour" as "color", drops punctuation, splits at spaces; markers match first, as written.

    No token depends on its neighbours, so a prompt's ids are the ids of its parts in a row.
    """
    words = {word: index for index, word in enumerate((*SPECIAL, *vocabulary()))}
    tokenizer = Tokenizer(WordLevel(words, unk_token=UNKNOWN))
    tokenizer.normalizer = Sequence([Lowercase(), Replace("colour", "color"), Replace(Regex(r"[?!.,;:'\"()]+"), " ")])
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    return tokenizer


def pretrained_tokenizer() -> PreTrainedTokenizerFast:
    """The same tokenizer in the form that `AutoTokenizer` loads, chat template included."""
    return PreTrainedTokenizerFast(
        tokenizer_object=build_tokenizer(),
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNKNOWN,
        additional_special_tokens=[VIDEO, IMAGE, USER, ASSISTANT, NEWLINE],
        chat_template=CHAT_TEMPLATE,
        padding_side="left",
    )


@cache
def encode(text: str) -> tuple[int, ...]:
    """Ids of a text, markers included."""
    return tuple(build_tokenizer().encode(text).ids)

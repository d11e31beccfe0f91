"""A family's prompt template as token ids: what stands before the media, behind them, and between turns."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from occam.errors import InvalidInput
from occam.models.checkpoint import read_settings, text_digest


@dataclass(frozen=True, kw_only=True)
class Format:
    """The literal texts of a template, media first in the first turn.

    opening(system): everything before the media; media_end: what closes each chunk of media, and is part of it
    question: between media and question; generation: behind a question; answer: between that and an answer's text
    following: between the end of an answer and the next question; end: the token that ends an answer
    """

    opening: Callable[[str], str]
    question: str
    generation: str
    answer: str
    following: str
    end: str
    media_end: str = ""

    @property
    def digest_text(self) -> str:
        """What the cache key needs to know of the template."""
        literals = (self.media_end, self.question, self.generation, self.answer, self.following, self.end)
        return "\0".join((self.opening("system"), *literals))


VICUNA = Format(
    opening=lambda system: f"{system} USER: " if system else "USER: ",
    question="\n",
    generation=" ASSISTANT:",
    answer=" ",
    following="USER: ",
    end="</s>",
)
"""`USER: <media>\\n{question} ASSISTANT: {answer}</s>USER: ...`, of Video-LLaVA, LLaVA-1.5 and vicuna LLaVA-NeXT."""

MISTRAL = Format(
    opening=lambda system: f"<<SYS>>\n{system}\n<</SYS>>\n\n[INST] " if system else "[INST] ",
    question="\n",
    generation=" [/INST]",
    answer=" ",
    following="[INST] ",
    end="</s>",
)
"""`[INST] <media>\\n{question} [/INST] {answer}</s>[INST] ...`, of LLaVA-NeXT on Mistral-Instruct."""


CHATML = Format(
    opening=lambda system: (
        f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n" if system else "<|im_start|>user\n"
    ),
    question="",
    generation="<|im_end|>\n<|im_start|>assistant\n",
    answer="",
    following="\n<|im_start|>user\n",
    end="<|im_end|>",
)
"""`<|im_start|>user\\n<media>{question}<|im_end|>\\n<|im_start|>assistant\\n{answer}<|im_end|>\\n...`, of Qwen3-VL."""


@dataclass(frozen=True)
class Prompt:
    """A tokenizer and its template; `placeholder` is the token that stands for visual tokens.

    stops: ids that end generation beside the one that ends a turn
    """

    tokenizer: PreTrainedTokenizerBase
    format: Format
    placeholder: str
    stops: frozenset[int] = frozenset()

    def digest(self, directory: Path) -> str:
        """SHA-256 over the checkpoint's tokenizer files and the template."""
        return text_digest(directory, self.format.digest_text)

    @property
    def placeholder_id(self) -> int:
        """The id that stands for a visual token."""
        return self.id(self.placeholder)

    @property
    def end_id(self) -> int:
        """The id that ends a turn."""
        return self.id(self.format.end)

    def check_template(self, directory: Path) -> None:
        """InvalidInput where the checkpoint's own chat template opens an answer otherwise (thinking models do)."""
        older = directory / "chat_template.json"
        template = read_settings(older).typed("chat_template", str) if older.exists() else None
        if template is None and self.tokenizer.chat_template is None:
            return
        asked = [{"role": "user", "content": "?"}]
        rendered = str(
            self.tokenizer.apply_chat_template(
                asked, chat_template=template, tokenize=False, add_generation_prompt=True
            )
        )
        if not rendered.endswith(self.format.generation):
            raise InvalidInput(
                f"The checkpoint's chat template opens an answer by {rendered.rpartition('?')[2]!r}, supported is "
                f"{self.format.generation!r}: models that think before they answer are not.",
                "model",
            )

    def stopping_at(self, eos: int | Sequence[int] | None) -> "Prompt":
        """The same, stopping wherever the checkpoint's generation config has stock `generate` stop."""
        listed = [] if eos is None else [eos] if isinstance(eos, int) else eos
        return replace(self, stops=frozenset(listed))

    def is_stop(self, token: int) -> bool:
        """Whether generation ends with this token."""
        return token == self.end_id or token in self.stops

    def prefix_ids(self, system: str) -> list[int]:
        """Ids in front of the media of a conversation; BOS where the tokenizer adds one."""
        self._refuse_control_tokens(system, "system")
        ids: list[int] = self.tokenizer.encode(self.format.opening(system) + self.placeholder)
        return ids[: ids.index(self.placeholder_id)]

    def turn_ids(self, question: str, first: bool) -> tuple[list[int], tuple[int, int]]:
        """Ids behind the media (first turn) or the last turn's end, and the span of the question itself in them."""
        self._refuse_control_tokens(question, "question")
        before = self.format.question if first else self.format.following
        ids = self._behind_past(before + question + self.format.generation, first)
        start = _common_prefix(ids, self._behind_past(before, first))
        generation = self.tokenizer.encode(self.format.generation, add_special_tokens=False)
        stop = len(ids) - _common_prefix(ids[::-1], generation[::-1])
        return ids, (min(start, stop), stop)

    def answer_ids(self, answer: str) -> list[int]:
        """Ids of an answer's text, as they follow the generation prompt."""
        self._refuse_control_tokens(answer, "messages")
        prompt = self.tokenizer.encode(self.format.generation, add_special_tokens=False)
        spoken = self.format.answer + answer
        whole = self.tokenizer.encode(self.format.generation + spoken, add_special_tokens=False)
        if whole[: len(prompt)] != prompt:
            # A merge across the border, of two newlines say; a model that spoke began behind the prompt's last token.
            return list(self.tokenizer.encode(spoken, add_special_tokens=False))
        return list(whole[len(prompt) :])

    def behind(self, anchor: str, text: str) -> list[int]:
        """Ids of `text` as it is tokenized behind the special token `anchor`."""
        ids: list[int] = self.tokenizer.encode(anchor + text, add_special_tokens=False)
        return ids[ids.index(self.id(anchor)) + 1 :]

    @property
    def media_end_ids(self) -> list[int]:
        """Ids that close a chunk of media, behind its visual tokens."""
        return self.behind(self.placeholder, self.format.media_end)

    def text(self, ids: list[int]) -> str:
        """Plain text of generated ids, special tokens left out."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True)).strip()

    def _behind_past(self, text: str, first: bool) -> list[int]:
        """Ids of `text` behind the media and what closes them (first turn), or behind the end of an answer."""
        if not first:
            return self.behind(self.format.end, text)
        return self.behind(self.placeholder, self.format.media_end + text)[len(self.media_end_ids) :]

    def id(self, token: str) -> int:
        """The id of one token of the vocabulary."""
        return int(self.tokenizer.convert_tokens_to_ids(token))

    def _refuse_control_tokens(self, text: str, param: str) -> None:
        """A placeholder or an end of turn inside a text would be taken for a real one.

        Ids tell, not the text: a tokenizer may change the case and the letters before it looks for its tokens.
        """
        control = {index for index, token in self.tokenizer.added_tokens_decoder.items() if token.special}
        control |= {self.placeholder_id, self.end_id}
        control.discard(self.tokenizer.unk_token_id)
        for index in self.tokenizer.encode(text, add_special_tokens=False):
            if index in control:
                token = self.tokenizer.convert_ids_to_tokens(index)
                raise InvalidInput(f"The {param} contains {token}, which is the model's own control token.", param)


def _common_prefix(left: list[int], right: list[int]) -> int:
    count = 0
    for a, b in zip(left, right, strict=False):
        if a != b:
            break
        count += 1
    return count

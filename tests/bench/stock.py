"""The rival: stock `transformers` over the same weights, unpruned, with the attention that it comes with.

Legend: B prompts, T tokens of the longest.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from occam.engine import Engine
from occam.types import FrameBatch

VIDEO = 2
"""What `mm_token_type_ids` calls a video's token."""


class Stock:
    """Prompts and passes of a model like the one that the adapter wraps, in all its tensors the very same."""

    def __init__(self, engine: Engine) -> None:
        wrapped = engine.lm.model
        tensors = {id(tensor): tensor for tensor in (*wrapped.parameters(), *wrapped.buffers())}
        self.engine = engine
        self.model = copy.deepcopy(wrapped, tensors)
        self.model.model.language_model.set_attn_implementation("sdpa")

    def inputs(self, clips: Sequence[FrameBatch], questions: Sequence[str]) -> dict[str, Tensor]:
        """What `generate` takes: each clip and its question, padded on the left."""
        prompts = [self._ids(clip, question) for clip, question in zip(clips, questions, strict=True)]
        longest = max(map(len, prompts))
        pad = self.engine.lm.prompt.end_id
        ids_BT = torch.tensor([[pad] * (longest - len(ids)) + ids for ids in prompts], device=self.model.device)
        first_B1 = torch.tensor([[longest - len(ids)] for ids in prompts], device=self.model.device)
        attended_BT = (torch.arange(longest, device=self.model.device) >= first_B1).long()
        return {"input_ids": ids_BT, "attention_mask": attended_BT, **self._media(clips, ids_BT)}

    def generate(self, inputs: dict[str, Tensor], new_tokens: int) -> Any:
        """Greedy, so many tokens whatever they are."""
        with torch.inference_mode():
            return self.model.generate(
                **inputs,
                max_new_tokens=new_tokens,
                min_new_tokens=new_tokens,
                do_sample=False,
                pad_token_id=self.engine.lm.prompt.end_id,
                return_dict_in_generate=True,
            )

    def llm(self, inputs: dict[str, Tensor]) -> Callable[[], Tensor]:
        """The language model alone over a prompt whose visual tokens are there, up to the last token's logits."""
        text, seen = self.model.model.language_model, {}

        def remember(_: object, args: object, kwargs: dict[str, Any]) -> None:
            seen.update(kwargs)

        hook = text.register_forward_pre_hook(remember, with_kwargs=True)
        with torch.inference_mode():
            self.model(**inputs, logits_to_keep=1)
        hook.remove()

        def run() -> Tensor:
            with torch.inference_mode():
                hidden = text(**seen).last_hidden_state
                logits: Tensor = self.model.lm_head(hidden[:, -1:])
            return logits

        return run

    def steps(self, inputs: dict[str, Tensor], batch: int, prefilled: Any, count: int) -> Callable[[], None]:
        """So many greedy steps of a batch of the same prompt, each call going on where the last one ended.

        prefilled: what `generate` gave for the prompt alone, left as it is; the bare forward pass, which is less than
        `generate` does
        """
        cache = copy.deepcopy(prefilled.past_key_values)
        cache.batch_repeat_interleave(batch)
        state = {"ids": prefilled.sequences[:, -1:].repeat(batch, 1)}

        def run() -> None:
            with torch.inference_mode():
                for _ in range(count):
                    logits = self.model(input_ids=state["ids"], past_key_values=cache, logits_to_keep=1).logits
                    state["ids"] = logits[:, -1:].argmax(dim=-1)

        return run

    def _ids(self, clip: FrameBatch, question: str) -> list[int]:
        """Of the whole prompt, as the engine lays it out unpruned."""
        lm = self.engine.lm
        suffix, _ = lm.prompt.turn_ids(question, first=True)
        if lm.decoder.axes > 1:
            media = lm._layout(clip, *lm.grid(clip)).ids.tolist()
        else:
            visual = len(lm.layout(clip, lm.tower.side).source)
            media = [lm.prompt.placeholder_id] * visual + lm.prompt.media_end_ids
        return [*lm.prompt.prefix_ids(""), *media, *suffix]

    def _media(self, clips: Sequence[FrameBatch], ids_BT: Tensor) -> dict[str, Tensor]:
        """The clips' pixels, as the family's class wants them."""
        lm = self.engine.lm
        pixels = [lm._preprocess(clip) for clip in clips]
        if lm.decoder.axes == 1:
            return {"pixel_values_videos": torch.stack(pixels)}
        patches, grids = zip(*pixels, strict=True)
        return {
            "pixel_values_videos": torch.cat(patches),
            "video_grid_thw": torch.tensor(grids, device=ids_BT.device),
            "mm_token_type_ids": VIDEO * (ids_BT == lm.prompt.placeholder_id).long(),
        }

"""Run in another process: restore states from Redis, or embeddings, and go on with their conversations.

python -m tests.parity.resume FOLDER..., where each `job.json` names the Redis, the checkpoint, the rule, the steps, the
dtypes and, for every stored state, the questions to ask over it; for embeddings, the names of the media. Replies go to
FOLDER/replies.pt, the states built on embeddings to FOLDER/states.pt.
"""

import asyncio
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from occam.engine import Engine
from occam.kv.key import KVKey, MediumKey
from occam.tensors import MediumTokens, PrefixState
from services.redis_store import RedisEmbeddings, RedisStore
from tests.parity.harness import Reply, ask, load, pruning_of
from tests.parity.oracle import Rule


def key_of(engine: Engine, rule: Rule, name: str) -> KVKey:
    """The key under which a state of this engine and rule lies in the Redis."""
    medium = MediumKey(kind="video", digest=name, frame_indices=(), decode_backend="generated")
    return KVKey(media=(medium,), facts=engine.key_facts(pruning_of(rule)))


async def store(url: str, states: Mapping[KVKey, PrefixState], media: Mapping[KVKey, MediumTokens]) -> None:
    """Put states and embeddings into the Redis at `url`."""
    redis, embeddings = RedisStore(url), RedisEmbeddings(url)
    for key, state in states.items():
        assert await redis.put(key, state)
    for key, medium in media.items():
        assert await embeddings.put(key, medium)
    await redis.aclose()
    await embeddings.aclose()


async def restore(url: str, key: KVKey) -> PrefixState:
    """The state that `store` put there."""
    redis = RedisStore(url)
    state = await redis.get(key)
    await redis.aclose()
    assert state is not None
    return state


async def restore_media(url: str, keys: Sequence[KVKey]) -> list[MediumTokens]:
    """The embeddings that `store` put there."""
    redis = RedisEmbeddings(url)
    found = [medium for key in keys if (medium := await redis.get(key)) is not None]
    await redis.aclose()
    assert len(found) == len(keys)
    return found


def over(engine: Engine, rule: Rule, media: Sequence[MediumTokens]) -> PrefixState:
    """A state of media whose embeddings are there."""
    state = engine.begin(pruning_of(rule))
    for medium in media:
        for number, tokens in enumerate(medium.chunks):
            state, _ = engine.extend(state, tokens, begins=number == 0)
    return state


def everything(replies: Sequence[Reply]) -> list[dict[str, torch.Tensor]]:
    """All of the replies that must be bitwise equal, as tensors."""
    return [
        {
            "logits": reply.logits,
            "generated": torch.tensor(reply.answer.turn.generated_ids),
            "threshold": torch.tensor(reply.answer.evidence.threshold),
            **{
                f"{name} of frame {at}": torch.from_numpy(getattr(frame, name)).clone()
                for at, frame in enumerate(reply.answer.evidence.frames)
                for name in ("stage1", "stage2", "scores")
            },
        }
        for reply in replies
    ]


def main(folder: Path) -> None:
    job = json.loads((folder / "job.json").read_text())
    rule = Rule(**job["rule"])
    replies: dict[str, dict[str, list[dict[str, torch.Tensor]]]] = {}
    states: dict[str, dict[str, Any]] = {}
    for dtype in job["dtypes"]:
        engine = load(Path(job["checkpoint"]), dtype=dtype)
        replies[dtype] = {}
        for name, questions in job["questions"].items():
            state = asyncio.run(restore(job["redis"], key_of(engine, rule, name)))
            replies[dtype][name] = everything(ask(engine, state, questions, pruning_of(rule), job["steps"]))
        keys = [key_of(engine, rule, name) for name in job["media"]]
        state = over(engine, rule, asyncio.run(restore_media(job["redis"], keys)))
        states[dtype] = vars(state)
        replies[dtype]["embeddings"] = everything(ask(engine, state, job["embeddings"], pruning_of(rule), job["steps"]))
    torch.save(replies, folder / "replies.pt")
    torch.save(states, folder / "states.pt")


if __name__ == "__main__":
    for name in sys.argv[1:]:
        main(Path(name))

"""Run in another process: restore states from Redis and go on with their conversations.

python -m tests.parity.resume FOLDER, where `job.json` names the Redis, the checkpoint, the rule, the steps, the dtypes
and, for every stored state, the questions to ask over it. Replies go to FOLDER/replies.pt.
"""

import asyncio
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from occam.engine import Engine
from occam.kv.key import KVKey, MediumKey
from occam.tensors import PrefixState
from services.redis_store import RedisStore
from tests.parity.harness import Reply, ask, load, pruning_of
from tests.parity.oracle import Rule


def key_of(engine: Engine, rule: Rule, name: str) -> KVKey:
    """The key under which a state of this engine and rule lies in the Redis."""
    medium = MediumKey(kind="video", digest=name, frame_indices=(), decode_backend="generated")
    return KVKey(media=(medium,), facts=engine.key_facts(pruning_of(rule)))


async def store(url: str, states: Mapping[KVKey, PrefixState]) -> None:
    """Put states into the Redis at `url`."""
    redis = RedisStore(url)
    for key, state in states.items():
        assert await redis.put(key, state)
    await redis.aclose()


async def restore(url: str, key: KVKey) -> PrefixState:
    """The state that `store` put there."""
    redis = RedisStore(url)
    state = await redis.get(key)
    await redis.aclose()
    assert state is not None
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
    for dtype in job["dtypes"]:
        engine = load(Path(job["checkpoint"]), dtype=dtype)
        replies[dtype] = {}
        for name, questions in job["questions"].items():
            state = asyncio.run(restore(job["redis"], key_of(engine, rule, name)))
            replies[dtype][name] = everything(ask(engine, state, questions, pruning_of(rule), job["steps"]))
    torch.save(replies, folder / "replies.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""Run in another process: restore encoded states and go on with their conversations.

python -m tests.parity.resume FOLDER, where `job.json` names the checkpoint, the rule, the steps, the dtypes and, for
every state stored under FOLDER/DTYPE, the questions to ask over it. Replies go to FOLDER/replies.pt.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from occam.kv.codec import Manifest, decode, encode
from occam.tensors import PrefixState
from tests.parity.harness import Reply, ask, load, pruning_of
from tests.parity.oracle_tower import Rule


def store(state: PrefixState, folder: Path) -> None:
    """Write the state as its manifest and parts."""
    folder.mkdir(parents=True)
    manifest, parts = encode(state)
    (folder / "manifest").write_bytes(manifest.to_bytes())
    for index, part in enumerate(parts):
        (folder / f"part-{index}").write_bytes(part)


def restore(folder: Path) -> PrefixState:
    """The state written by `store`."""
    manifest = Manifest.from_bytes((folder / "manifest").read_bytes())
    return decode(manifest, [(folder / f"part-{index}").read_bytes() for index in range(len(manifest.parts))])


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
    pruning = pruning_of(Rule(**job["rule"]))
    replies = {}
    for dtype in job["dtypes"]:
        engine = load(Path(job["checkpoint"]), dtype=dtype)
        replies[dtype] = {
            name: everything(ask(engine, restore(folder / dtype / name), questions, pruning, job["steps"]))
            for name, questions in job["questions"].items()
        }
    torch.save(replies, folder / "replies.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""Train an embedded model: `python -m pipelines.training tiny-qwen3-vl --seed 0 --out runs/qwen3-vl`.

On part of the batches visual tokens are missing, before the language model or inside it, and a register token stands
before each turn, so that pruning is nothing new to the finished model. A run resumes from its last checkpoint.
"""

import argparse
from pathlib import Path

import torch

from occam.errors import InvalidInput
from pipelines.training.student import Student
from pipelines.training.tiny_qwen3_vl import TinyQwen3VL
from pipelines.training.tiny_video_llava import TinyVideoLlava
from pipelines.training.trainer import TrainConfig, train

STUDENTS: dict[str, type[Student]] = {kind.name: kind for kind in (TinyVideoLlava, TinyQwen3VL)}


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.training", description=__doc__)
    parser.add_argument("model", choices=STUDENTS)
    parser.add_argument("--seed", type=int, default=0, help="0 to 8: runs of different seeds share no clip (0)")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tower-steps", type=int, default=500)
    parser.add_argument("--tower-scenes", type=int, default=24, help="scenes of 4 frames a step (24)")
    parser.add_argument("--steps", type=int, default=1800)
    parser.add_argument("--clips", type=int, default=12, help="clips a step (12)")
    parser.add_argument("--questions", type=int, default=12, help="questions a clip (12)")
    parser.add_argument("--save-minutes", type=float, default=8.0)
    parser.add_argument("--threads", type=int, default=2)
    arguments = vars(parser.parse_args())
    torch.set_num_threads(arguments.pop("threads"))
    kind = STUDENTS[arguments.pop("model")]
    try:
        config = TrainConfig(**arguments)
    except InvalidInput as error:
        parser.error(error.message)
    train(kind, config)


if __name__ == "__main__":
    main()

"""What a question about 30 s of a long clip costs beside the same question about those 30 s alone.

python -m tests.bench.range_cost [--minutes 10] [--repeats 7] [--model NAME] [--encoder-options preset=veryfast]

Makes both clips (H.264, 30 frames a second, 640 x 360), then runs both questions in turn over the service's own media
and engine, nothing cached but what a probe says: decoding, encoding, prefill, up to the first token. Fetching and
probing are what the first round does, and are said apart.
"""

import argparse
import asyncio
import statistics
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import av
import numpy as np
import torch

from occam.config import SamplingParams
from occam.engine import Engine
from services.media import LocalMedia
from services.messages import FrameChoice, Source
from services.settings import Settings

RATE, WIDTH, HEIGHT = 30, 640, 360
SECONDS, AT = 30.0, 0.503
"""Length of the range, and where it begins as a share of the clip: not at a key frame."""
BAR = 1.3
PARTS = ("decode", "encode", "prefill_lower", "prefill_upper", "first frames", "all")


def write_clip(path: Path, first: int, frames: int, options: dict[str, str]) -> None:
    """Frames `first`, `first` + 1, .. of one long scene that moves sideways."""
    base = np.random.default_rng(0).integers(0, 255, (HEIGHT // 8, 2 * WIDTH // 8), dtype=np.uint8)
    scene = base.repeat(8, 0).repeat(8, 1)
    plane = np.full((HEIGHT * 3 // 2, WIDTH), 128, np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE, options=options)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for number in range(first, first + frames):
            shift = 2 * number % WIDTH
            plane[:HEIGHT] = scene[:, shift : shift + WIDTH]
            plane[:40] = number // RATE * 7 % 256
            frame = av.VideoFrame.from_ndarray(plane, format="yuv420p")
            frame.pts = number - first
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


async def ask(engine: Engine, media: LocalMedia, url: str, choice: FrameChoice, digest: str | None) -> dict[str, float]:
    """Seconds of each part of one question, and of all of it to the first token but for fetching and probing."""
    described = await media.describe(Source(url=url, kind="video"), choice, engine.info.frames, digest)
    pruning = engine.pruning()
    seconds = dict.fromkeys(PARTS, 0.0) | {stage.stage: stage.seconds for stage in described.stats}
    started, stats = time.monotonic(), []
    state = engine.begin(pruning)
    async for chunk in media.decode(described.medium, engine.chunk(pruning, len(described.medium.indices))):
        seconds["first frames"] = seconds["first frames"] or time.monotonic() - started
        state, work = engine.append(state, chunk.frames, pruning)
        stats += [chunk.stats, *work]
    generation = engine.generation(state, "what color is the star", pruning, SamplingParams(max_new_tokens=1))
    engine.start([generation])
    seconds["all"] = time.monotonic() - started
    assert generation.answer is not None
    for stage in (*stats, *generation.answer.stats):
        seconds[stage.stage] = seconds.get(stage.stage, 0.0) + stage.seconds
    return seconds


async def measure(args: argparse.Namespace, folder: Path) -> float:
    """Both questions in turn; medians, and the median of the rounds' own ratios, of which the last is given."""
    engine = Engine.load(Settings(models=(args.model,), threads=args.threads).engine(args.model))
    media = LocalMedia(Settings(directory=str(folder / "service"), file_roots=(str(folder),)))
    start = 60 * args.minutes * AT
    questions = {
        "range": (str(folder / "long.mp4"), FrameChoice(start_s=start, end_s=start + SECONDS)),
        "cut": (str(folder / "cut.mp4"), FrameChoice()),
    }
    digests = {}
    for name, (url, choice) in questions.items():
        described = await media.describe(Source(url=url, kind="video"), choice, engine.info.frames, None)
        digests[name] = described.medium.digest
        took = ", ".join(f"{stage.stage} {stage.seconds:.3f} s" for stage in described.stats)
        print(f"{name}: {described.medium.frames} frames, {Path(url).stat().st_size >> 10} KiB; once: {took}")
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in questions}
    for number in range(args.repeats + 1):
        for name, (url, choice) in questions.items():
            seconds = await ask(engine, media, url, choice, digests[name])
            if number:
                rounds[name].append(seconds)
    print(f"\nmedians of {args.repeats} rounds, in seconds\n{'':14}{'range':>8}{'cut':>8}{'ratio':>8}")
    for part in PARTS:
        medians = [statistics.median(seconds[part] for seconds in rounds[name]) for name in questions]
        pairs = zip(rounds["range"], rounds["cut"], strict=True)
        ratio = statistics.median(one[part] / other[part] for one, other in pairs if other[part])
        print(f"{part:14}{medians[0]:8.3f}{medians[1]:8.3f}{ratio:8.2f}")
    return ratio


def main() -> int:
    """Make the clips, ask, print; 1 if the bar is not met."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.range_cost",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--minutes", type=float, default=10.0, help="of the long clip (10)")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--model", default="tiny-video-llava")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--encoder-options", nargs="*", default=["preset=veryfast"], help="of x264, NAME=VALUE")
    args = parser.parse_args()
    options = dict(option.split("=", 1) for option in args.encoder_options)
    with TemporaryDirectory(prefix="occam-range-") as name:
        folder = Path(name)
        (folder / "service").mkdir()
        frames = round(60 * args.minutes * RATE)
        write_clip(folder / "long.mp4", 0, frames, options)
        write_clip(folder / "cut.mp4", round(frames * AT), round(SECONDS * RATE), options)
        ratio = asyncio.run(measure(args, folder))
    print(f"the range costs {ratio:.2f} times what the cut does, and may cost {BAR:g} times")
    return 0 if ratio <= BAR else 1


if __name__ == "__main__":
    sys.exit(main())

"""`occam ask`: one video or image, its questions, one process. No Ray, no Redis."""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from occam.config import Pruning, SamplingParams
from occam.engine import Engine
from occam.errors import EngineFailure
from occam.stats import StageStats
from occam.types import Answer, Turn
from services.answers import Prefix, finish, key_of
from services.media import LocalMedia
from services.messages import Described, FrameChoice, PruningChoice, Reply, Source
from services.settings import Settings, model_name

SESSION = "local"

Note = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Errand:
    """What was asked on the command line: a path or URL, and questions of which each follows up on those before."""

    source: str
    questions: tuple[str, ...]
    frames: FrameChoice
    pruning: PruningChoice
    sampling: SamplingParams
    evidence: bool


def ask(settings: Settings, errand: Errand, note: Note, piece: Note) -> Iterator[Reply]:
    """One reply for each question.

    note: is told what is going on; piece: is given the answer's text as it is generated
    """
    note("loading the model")
    engine = Engine.load(settings.engine(settings.models[0]))
    settled = engine.pruning(errand.pruning.strategy, **errand.pruning.options)
    started = time.monotonic()
    note("fetching the file")
    pruning = engine.asked(settled, errand.questions[0])
    described, prefix = asyncio.run(_prefix(settings, errand, engine, pruning, note))
    fetched = described.stats
    turns: tuple[Turn, ...] = ()
    for question in errand.questions:
        if pruning != engine.asked(settled, question):
            # The state is another question's.
            pruning = engine.asked(settled, question)
            _, prefix = asyncio.run(_prefix(settings, errand, engine, pruning, note))
            prefix = replace(prefix, state=engine.replay(prefix.state, turns))
        note("answering")
        reply = _answer(engine, errand, pruning, described, prefix, turns, question, started, piece)
        yield replace(reply, stats=(*fetched, *reply.stats))
        fetched, started = (), time.monotonic()
        new_turns = reply.finished.turns[len(turns) :]
        turns = reply.finished.turns
        state = engine.replay(prefix.state, new_turns)
        prefix = replace(prefix, state=state, tier="memory", cached_tokens=len(state), stats=())


async def _prefix(
    settings: Settings, errand: Errand, engine: Engine, pruning: Pruning, note: Note
) -> tuple[Described, Prefix]:
    with _media(settings, errand.source) as (media, url):
        described = await media.describe(Source(url=url, kind=None), errand.frames, engine.info.frames, None)
        medium = described.medium
        state = engine.begin(pruning)
        stats: list[StageStats] = []
        async for chunk in media.decode(medium, engine.chunk(pruning, len(medium.indices))):
            state, work = engine.append(state, chunk.frames, pruning)
            stats += (chunk.stats, *work)
            note(f"{len(state.view_pts)} of {len(medium.indices)} frames encoded")
    key = key_of(engine, (medium,), pruning, system="")
    return described, Prefix(state=state, key=key, tier="none", cached_tokens=0, stats=tuple(stats))


@contextmanager
def _media(settings: Settings, source: str) -> Iterator[tuple[LocalMedia, str]]:
    """The media of this process alone; a path that the person at the keyboard names may be read."""
    with TemporaryDirectory(prefix="occam-") as directory:
        settings = replace(settings, directory=directory)
        if source.startswith(("http://", "https://")):
            yield LocalMedia(settings), source
        else:
            path = Path(source).resolve()
            yield LocalMedia(replace(settings, file_roots=(str(path.parent),))), path.as_uri()


def _answer(
    engine: Engine,
    errand: Errand,
    pruning: Pruning,
    described: Described,
    prefix: Prefix,
    turns: tuple[Turn, ...],
    question: str,
    started: float,
    piece: Note,
) -> Reply:
    ttft_s: float | None = None
    for event in engine.stream(prefix.state, question, pruning, errand.sampling):
        ttft_s = time.monotonic() - started if ttft_s is None else ttft_s
        if isinstance(event, Answer):
            return Reply(
                finished=finish(event, prefix, (described.medium,), pruning, turns, errand.evidence),
                session_id=SESSION,
                model=model_name(engine.config.model),
                stats=(*prefix.stats, *event.stats),
                ttft_s=ttft_s,
                total_s=time.monotonic() - started,
            )
        piece(event)
    raise EngineFailure("The answer ended without its end.")

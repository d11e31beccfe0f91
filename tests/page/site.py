"""The whole service in one process behind a real socket: embedded models, a generated clip, an endless answer."""

import itertools
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import uvicorn

from occam.config import EngineConfig, Pruning, SamplingParams
from occam.engine import Engine
from occam.tensors import PrefixState
from pipelines.evaluation.codec import write_mp4
from pipelines.evaluation.renderer import SceneConfig, draw_scene, render
from services.decoder import Decoder
from services.ingress import Ingress
from services.media import LocalMedia
from services.settings import Settings
from services.worker import Worker
from tests.fakes import FakeEngine, FakeGeneration
from tests.services.local import LocalHandle

MODELS = ("tiny-video-llava", "tiny-qwen3-vl", "fake")
SCENE, CONFIG = 1000110, SceneConfig(objects=(3, 4), clutter=(0, 3), unseen_pairs=False)
QUESTION, ANSWER = "what color is the triangle", "cyan"
FOLLOW_UP = "is the cyan object big or small"


class EndlessEngine(FakeEngine):
    """A fake that answers `endless` questions without end; `words` counts what it wrote of them."""

    words = itertools.count()

    def generation(
        self, state: PrefixState, question: str, pruning: Pruning, sampling: SamplingParams
    ) -> FakeGeneration:
        if "endless" not in question:
            return super().generation(state, question, pruning, sampling)
        return FakeGeneration((f" and {next(self.words)}" for _ in itertools.count()), 0.02)


@dataclass(frozen=True)
class Site:
    """The page's address, a clip with its address on another origin, and a file that is no video."""

    url: str
    clip: Path
    clip_url: str
    not_a_video_url: str


@contextmanager
def serving(directory: Path, redis_url: str) -> Iterator[Site]:
    files, service = directory / "files", directory / "service"
    files.mkdir()
    service.mkdir()
    # Coarsely encoded: smooth pictures make small screenshots.
    write_mp4(files / "clip.mp4", render(draw_scene(SCENE, CONFIG)), crf=34)
    (files / "notes.mp4").write_text("not a video at all, but named like one\n" * 9)
    with _file_server(files) as host:
        settings = Settings(
            models=MODELS,
            kv_url="memory://",
            state_url=redis_url,
            directory=str(service),
            allow_private_hosts=(host,),
            file_roots=(str(directory),),
            threads=1,
        )
        settings.metrics_directory.mkdir()
        with _http_server(_app(settings)) as url:
            yield Site(url, files / "clip.mp4", f"http://{host}/clip.mp4", f"http://{host}/notes.mp4")


def _app(settings: Settings) -> Any:
    decoder = LocalHandle(Decoder(settings, LocalMedia))
    workers = {model: LocalHandle(Worker(settings, model, _load, decoder)) for model in settings.models}
    return Ingress(settings, decoder, workers).__serve_build_asgi_app__()


def _load(config: EngineConfig) -> Engine:
    return EndlessEngine.load(config) if config.model == "fake" else Engine.load(config)


@contextmanager
def _http_server(app: Any) -> Iterator[str]:
    config = uvicorn.Config(
        app, port=0, loop="asyncio", ws="none", lifespan="on", log_level="warning", timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


class _Files(SimpleHTTPRequestHandler):
    def log_message(self, *args: Any) -> None:
        pass


@contextmanager
def _file_server(folder: Path) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Files, directory=str(folder)))
    threading.Thread(target=server.serve_forever, args=(0.05,)).start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()

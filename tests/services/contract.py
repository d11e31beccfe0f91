"""Requests drawn from the OpenAPI document, and what must hold of every response: by schemathesis."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import Case, GenerationMode

from occam.config import SEEDS, OccamToken, Pruning, check_kind
from occam.errors import InvalidInput
from services.ingress import Ingress
from services.keys import entry_of, fresh_key
from services.messages import Described, FrameChoice, Source
from services.settings import Settings
from tests.fakes import FakeEngine, FakeMedia
from tests.services.served import served

# What a well-formed request may come to; a 400 would say that the document promises more than the service takes.
_TAKEN = ["2xx", "404", "409", "413", "415", "422", "503", "504"]
_CONFIG = {
    # What a query has besides is ignored, as by everybody.
    "generation": {"allow-extra-parameters": False},
    "checks": {
        "positive_data_acceptance": {"expected-statuses": _TAKEN},
        "negative_data_rejection": {"expected-statuses": ["4xx"]},
    },
}
KEY = fresh_key()
_HEADERS = {"Authorization": f"Bearer {KEY}"}
_QUESTION = {
    "role": "user",
    "content": [{"type": "video_url", "video_url": {"url": "fake://any"}}, {"type": "text", "text": "what?"}],
}


class AnyEngine(FakeEngine):
    """Takes any strategy's name, and of options those of `occam`, as the real one checks them."""

    def pruning(self, strategy: str | None = None, /, **options: Any) -> Pruning:
        for name, value in options.items():
            if name not in OccamToken.__dataclass_fields__:
                raise InvalidInput(f"Strategy 'occam' has no {name}.", name)
            check_kind(OccamToken, name, value)
        return super().pruning(strategy, **options)


class AnyMedia(FakeMedia):
    """Takes every address for that of a clip or an image."""

    async def describe(self, source: Source, choice: FrameChoice, frames: int, digest: str | None) -> Described:
        return await super().describe(Source(url="fake://any", kind=source.kind), choice, frames, digest)


def operations() -> dict[str, Any]:
    """Every operation of the document by its label, without a service behind it."""
    nowhere = Settings(models=("fake",), state_url="redis://nowhere", kv_url="memory://")
    document = Ingress(nowhere, None, {}).__serve_build_asgi_app__().openapi()  # type: ignore[arg-type]
    schema = schemathesis.openapi.from_dict(document, config=schemathesis.Config.from_dict(_CONFIG))
    return {operation.ok().label: operation.ok() for operation in schema.get_all_operations()}


@contextmanager
def subject(directory: Path, redis_url: str) -> Iterator[tuple[str, dict[str, str | int]]]:
    """The service's address, and for each thing that a path can name one that is there; it asks for `KEY`."""
    options = {"models": ("fake", "fake-both"), "max_body_bytes": 1 << 20, "api_keys": (entry_of("acme", KEY),)}
    with (
        served(directory, redis_url, media=AnyMedia, load=AnyEngine, **options) as live,
        httpx.Client(base_url=f"{live.url}/v1", headers=_HEADERS) as http,
    ):
        video = http.post("videos", json={"url": "fake://clip"}).json()["id"]
        asked = http.post(f"videos/{video}/queries", json={"question": "what?", "evidence": True}).json()
        job = http.post("jobs", json={"videos": [{"id": video}], "questions": ["what?"]}).json()
        yield (
            live.url,
            {
                "video_id": video,
                "session_id": asked["session_id"],
                "job_id": job["id"],
                "turn": 0,
                "index": asked["evidence"]["frames"][0]["index"],
            },
        )


def hold(operation: Any, url: str, known: dict[str, str | int], examples: int) -> Counter[str]:
    """Send `examples` requests that the document allows and as many that it does not; how many of each came to what.

    Raises what schemathesis finds: a 5xx, a response outside the document, a wrong body that was taken, a right one
    that was refused as malformed.
    """
    seen: Counter[str] = Counter()
    for mode in GenerationMode:
        try:
            _send(operation, mode, url, known, examples, seen)
        except Unsatisfiable:
            assert mode is GenerationMode.NEGATIVE, "nothing about the request can be wrong"
    return seen


def _send(
    operation: Any, mode: GenerationMode, url: str, known: dict[str, str | int], examples: int, seen: Counter[str]
) -> None:
    @settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.explicit, Phase.generate],
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def each(case: Case) -> None:
        _point_at(case, mode, known)
        response = case.call(base_url=url, headers=_HEADERS)
        seen[f"{mode.value} {response.status_code}"] += 1
        case.validate_response(response, headers=_HEADERS)

    each()


def _fields(case: Case) -> dict[str, Any]:
    return case.body if isinstance(case.body, dict) else {}


def _point_at(case: Case, mode: GenerationMode, known: dict[str, str | int]) -> None:
    """Ask about what is there: an id that is drawn never is. What deletes keeps the id that it drew."""
    if mode is GenerationMode.POSITIVE and "messages" in _fields(case) and len(case.body["messages"]) == 1:
        # Nearly every conversation that is drawn is none, or about a model that is not served.
        case.body |= {"model": "fake-both", "messages": [_QUESTION], "occam": {"evidence": True}}
    if mode is GenerationMode.POSITIVE:
        for asking in (_fields(case), *_fields(case).get("questions", ())):
            if isinstance(asking, dict) and isinstance(asking.get("seed"), int):
                # The bounds have 64 bits; what draws by them reckons in doubles, and may go one beyond.
                asking["seed"] = min(max(asking["seed"], SEEDS[0]), SEEDS[1])
            for place in (asking, asking.get("occam")) if isinstance(asking, dict) else ():
                if isinstance(place, dict) and isinstance(place.get("deadline_s"), int | float):
                    # One of a moment is kept to, and answered with the 504 that it asks for.
                    place["deadline_s"] = max(place["deadline_s"], 10)
    if mode is GenerationMode.POSITIVE and case.method.upper() != "DELETE":
        case.path_parameters |= {name: known[name] for name in case.path_parameters if name in known}
        case.query.pop("medium", None)

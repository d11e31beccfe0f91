"""Work beside requests ends when it is told to, also where a library swallows that."""

import asyncio
import time
from contextlib import suppress
from typing import Any

import pytest

from occam.kv.store import TieredStore
from services.background import check_cancelled, ended
from services.state import State
from tests.services.world import Play, World


@pytest.mark.parametrize("checks", [True, False])
def test_a_lost_cancellation_is_raised_where_it_is_looked_for_and_else_repeated(checks: bool) -> None:
    async def work() -> None:
        with suppress(asyncio.CancelledError):  # as `asyncio.wait_for` may
            await asyncio.sleep(60)
        if checks:
            check_cancelled()
        await asyncio.sleep(60)

    async def main() -> float:
        task = asyncio.create_task(work())
        await asyncio.sleep(0)
        began = time.monotonic()
        await ended(task)
        assert task.cancelled()
        return time.monotonic() - began

    took_s = asyncio.run(main())
    assert (took_s < 0.5) if checks else (0.9 < took_s < 10)


def test_who_is_not_cancelled_goes_on() -> None:
    async def main() -> str:
        check_cancelled()
        return "on"

    assert asyncio.run(main()) == "on"


@pytest.mark.parametrize(("cls", "name"), [(State, "video"), (TieredStore, "get")])
def test_nobody_works_for_a_client_whose_hanging_up_was_lost(
    play: Play, monkeypatch: pytest.MonkeyPatch, cls: type, name: str
) -> None:
    """In the ingress, and in the state that a worker builds for all who wait: both ask Redis before what costs."""
    reached = asyncio.Event()
    original = getattr(cls, name)

    async def losing(*given: Any) -> Any:
        reached.set()
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(60)
        return await original(*given)

    async def scene(service: World) -> None:
        path = f"/v1/videos/{await service.post_video('fake://clip?delay=1')}/queries"  # a second for two frames
        monkeypatch.setattr(cls, name, losing)
        asked = asyncio.create_task(service.http.post(path, json={"question": "what?", "start_s": 1}))
        await reached.wait()
        await asyncio.sleep(0)
        asked.cancel()
        await asyncio.sleep(0.7)  # in which decoding would have begun
        assert (await service.decoder.target.running()).idle
        assert (await service.worker.target.running()).idle
        with suppress(asyncio.CancelledError):
            await asked

    play(scene)

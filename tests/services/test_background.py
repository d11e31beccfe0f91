"""Work beside requests ends when it is told to, also where a library swallows that."""

import asyncio
import time
from contextlib import suppress

import pytest

from services.background import check_cancelled, ended


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

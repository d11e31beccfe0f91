"""How a file of tests runs scenes in the service of one process."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.redis_server import RedisServer
from tests.services.world import Play, Scene, world


@pytest.fixture
def usual() -> dict[str, Any]:
    """What the scenes of a file have in common; a file that has something says so in a fixture of this name."""
    return {}


@pytest.fixture
def play(tmp_path: Path, redis_server: RedisServer, usual: dict[str, Any]) -> Play:
    """Run a scene in a fresh service; its settings may be given, over the usual ones."""

    def run(scene: Scene, **options: Any) -> None:
        async def main() -> None:
            async with world(tmp_path, redis_server.url, **(usual | options)) as service:
                await scene(service)

        asyncio.run(main())

    return run

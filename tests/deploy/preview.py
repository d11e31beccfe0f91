"""Pictures of the dashboards for docs, from a real Prometheus behind a real service that has had users for minutes.

`python -m tests.deploy.preview` writes docs/dashboards/*.png. They are drawn here, not by Grafana; queries, places,
units and thresholds are those of deploy/grafana/dashboards.
"""

import argparse
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.deploy.drawing import Window, draw
from tests.deploy.expressions import dashboards
from tests.deploy.load import KEYS, Users, service
from tests.deploy.prometheus import Prometheus
from tests.redis_server import RedisServer

DOCS = Path(__file__).parents[2] / "docs" / "dashboards"


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.deploy.preview", description=__doc__)
    parser.add_argument("--minutes", type=float, default=6.0, help="of load (6)")
    parser.add_argument("--out", type=Path, default=DOCS, help="folder of the pictures (docs/dashboards)")
    options = parser.parse_args()
    with ExitStack() as stack:
        clips, data, socket = (Path(stack.enter_context(TemporaryDirectory())) for _ in range(3))
        redis = RedisServer(socket)
        redis.start()
        stack.callback(redis.stop)
        base_url = stack.enter_context(service(clips, redis))
        target = base_url.removeprefix("http://")
        prometheus = stack.enter_context(Prometheus(data, target, KEYS["prometheus"]))
        start = time.time()
        live(base_url, clips, redis, 60 * options.minutes)
        window = Window(prometheus, start, time.time())
        for name, dashboard in dashboards().items():
            draw(dashboard, window, options.out / f"{Path(name).stem}.png")
    return 0


def live(base_url: str, clips: Path, redis: RedisServer, seconds: float) -> None:
    """Users who come and go; what else happens has its time: a crowd, jobs, a cache that is away for a while."""
    ends = time.monotonic() + seconds
    users = Users(base_url, clips)

    def until_the_end(visit: Callable[[], None], pause_s: float) -> threading.Thread:
        def visits() -> None:
            while time.monotonic() < ends:
                visit()
                time.sleep(pause_s)

        thread = threading.Thread(target=visits)
        thread.start()
        return thread

    threads = [
        until_the_end(users.converse, 0.5),
        until_the_end(users.converse, 1.0),
        until_the_end(users.look_at_new_frames, 2.0),
        until_the_end(lambda: users.converse(strategy="none"), 6.0),
        until_the_end(users.upload, 11.0),
        until_the_end(users.err, 17.0),
        until_the_end(users.hang_up, 13.0),
        until_the_end(users.begin_jobs, 45.0),
    ]
    for part, event in ((0.3, users.crowd), (0.05, users.crowd), (0.2, redis.kill), (0.15, redis.start)):
        time.sleep(part * seconds)
        event()
    for thread in threads:
        thread.join()
    users.close()


if __name__ == "__main__":
    sys.exit(main())

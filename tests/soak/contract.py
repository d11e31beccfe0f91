"""The document against the service for long: `python -m tests.soak.contract [--examples N]`; exits 1 on a finding."""

import argparse
import sys
import tempfile
from pathlib import Path

from tests.redis_server import RedisServer
from tests.services.contract import hold, operations, subject


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=500, help="requests of each kind for each operation")
    examples = parser.parse_args().examples
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        redis = RedisServer(Path(folder))
        redis.start()
        try:
            with subject(Path(folder), redis.url) as (url, known):
                for label, operation in operations().items():
                    try:
                        print(label, dict(sorted(hold(operation, url, known, examples).items())), flush=True)
                    except (Exception, BaseExceptionGroup) as finding:
                        failed += 1
                        print(label, "FAILED", finding, flush=True)
        finally:
            redis.stop()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

"""Everything that takes longer than a test may, one after the other: `make soak`.

The suite runs a smoke of each; here they run for as long as the claims are about. Each is a process of its own.
"""

import argparse
import subprocess
import sys
import time

_PYTEST = ("-m", "pytest", "-q")
SOAKS: dict[str, tuple[str, ...]] = {
    "overload": ("-m", "tests.soak.overload"),
    "cancelled": ("-m", "tests.soak.cancelled"),
    "kills": (*_PYTEST, "-m", "", "tests/services/test_service.py", "tests/services/test_serve.py"),
    "cluster": (*_PYTEST, "-m", "", "tests/services/test_cluster.py", "tests/deploy/test_serve_config.py"),
    "replicas": (
        *_PYTEST,
        "-m",
        "soak",
        "tests/services/test_autoscaling.py",
        "tests/services/test_placement.py",
        "tests/services/test_redeploy.py",
    ),
    "prometheus": (*_PYTEST, "-m", "soak", "tests/deploy/test_prometheus.py"),
    "browser": (*_PYTEST, "-m", "", "tests/page"),
    "contract": ("-m", "tests.soak.contract", "--examples", "100"),
    "range": ("-m", "tests.bench.range_cost"),
    "memory": ("-m", "tests.bench", "soak"),
}


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="SOAK", help=f"{', '.join(SOAKS)} (all)")
    names = parser.parse_args().names or list(SOAKS)
    if unknown := set(names) - set(SOAKS):
        parser.error(f"there is no {', '.join(sorted(unknown))}; there are {', '.join(SOAKS)}")
    ended = {}
    for name in names:
        print(f"== {name}", flush=True)
        started = time.monotonic()
        code = subprocess.run([sys.executable, *SOAKS[name]], check=False).returncode
        ended[name] = f"{'green' if code == 0 else f'exit {code}'} in {time.monotonic() - started:.0f} s"
    print("\n".join(["", *(f"{name:<12}{end}" for name, end in ended.items())]))
    return 0 if all(end.startswith("green") for end in ended.values()) else 1


if __name__ == "__main__":
    sys.exit(main())

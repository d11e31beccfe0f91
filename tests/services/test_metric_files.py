"""The node's numbers: who lives, what the dead counted, and that the sum never falls, whoever reads or dies when."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.parser import text_string_to_metric_families

from services import cli, metric_files
from services.metric_files import prepare, render
from services.settings import counting_folder
from tests.ports import free_port

ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}

COUNT = """
import os, sys
from pathlib import Path
from prometheus_client import values
from services.metric_files import Identity
os.environ["PROMETHEUS_MULTIPROC_DIR"] = sys.argv[1]
values.ValueClass = values.MultiProcessValue(Identity(Path(sys.argv[1])))
from prometheus_client import Counter, Gauge, Histogram
counted = Counter("counted_total", "Counts.", ["what"]).labels("it")
seconds = Histogram("seconds", "Seconds.", ["of"], buckets=(0.1, 1)).labels("it")
held = Gauge("held", "Held.", multiprocess_mode="livesum")
for line in sys.stdin:
    word, _, number = line.strip().partition(" ")
    if word == "count":
        counted.inc(int(number)), seconds.observe(0.1 * int(number)), held.inc()
    elif os.fork() == 0:  # the child counts, its parent is gone
        counted.inc(int(number)), held.inc()
        print("counted", os.getpid(), flush=True)
        os.kill(os.getppid(), 9)
        while True: os.read(0, 1) or os._exit(0)
    print("counted", flush=True)
"""

Child = subprocess.Popen[str]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Child]]:
    """A process that counts so much, and then waits."""
    children: list[Child] = []

    def start(*counts: int, wrapped_in: tuple[str, ...] = ()) -> Child:
        command = [*wrapped_in, sys.executable, "-c", COUNT, str(tmp_path)]
        child = subprocess.Popen(command, env=ENVIRONMENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        children.append(child)
        for number in counts:
            tell(child, f"count {number}")
        return child

    yield start
    for child in children:
        child.kill()
        child.communicate()


def tell(child: Child, line: str) -> str:
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write(f"{line}\n")
    child.stdin.flush()
    said = child.stdout.readline()
    assert said.startswith("counted")
    return said


def kill(child: Child) -> None:
    child.kill()
    child.wait()


def numbers(text: bytes) -> dict[str, float]:
    """Samples by name and labels."""
    samples = [sample for family in text_string_to_metric_families(text.decode()) for sample in family.samples]
    found = {
        sample.name + "".join(f" {value}" for _, value in sorted(sample.labels.items())): sample.value
        for sample in samples
    }
    assert len(found) == len(samples), "every number exactly once"
    return found


def test_the_living_are_summed_as_the_library_sums_them(start: Callable[..., Child], tmp_path: Path) -> None:
    for counts in ((1, 5, 20), (2,), ()):
        start(*counts)
    while len(list(tmp_path.glob("gauge_*"))) < 3:
        time.sleep(0.01)
    stock = CollectorRegistry()
    MultiProcessCollector(stock, path=str(tmp_path))
    ours = numbers(render(tmp_path))
    assert ours == pytest.approx(numbers(generate_latest(stock)))
    assert ours["counted_total it"] == 28
    assert ours["held"] == 4
    assert ours["seconds_bucket 1.0 it"] == 3
    assert ours["seconds_count it"] == ours["seconds_bucket +Inf it"] == 4


def test_what_the_dead_counted_stays_in_few_files_and_what_they_held_goes(
    start: Callable[..., Child], tmp_path: Path
) -> None:
    living = start(1)
    for number in range(12):
        kill(start(number, 2))
        if number % 3 == 0:
            render(tmp_path)
    seen = numbers(render(tmp_path))
    assert seen["counted_total it"] == 1 + sum(range(12)) + 24
    assert seen["held"] == 1
    assert seen["seconds_count it"] == 25
    # The guard, two merged files, and three files and a lock of the one that lives.
    assert len(list(tmp_path.iterdir())) == 7
    tell(living, "count 10")
    assert numbers(render(tmp_path))["counted_total it"] == seen["counted_total it"] + 10


def test_a_process_of_another_pid_namespace_is_known_to_live(start: Callable[..., Child], tmp_path: Path) -> None:
    apart = ("unshare", "--user", "--pid", "--fork", "--kill-child")
    if shutil.which("unshare") is None or subprocess.run([*apart, "true"], check=False, capture_output=True).returncode:
        pytest.skip("This machine does not let its users make pid namespaces.")
    child = start(3, wrapped_in=apart)
    assert numbers(render(tmp_path))["held"] == 1
    kill(child)
    deadline = time.monotonic() + 10
    while (seen := numbers(render(tmp_path))).get("held"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert seen["counted_total it"] == 3


def test_a_forked_process_counts_by_itself_and_does_not_keep_its_parent_alive(
    start: Callable[..., Child], tmp_path: Path
) -> None:
    parent = start(5)
    tell(parent, "fork 7")
    parent.wait(10)
    seen = numbers(render(tmp_path))
    assert seen["counted_total it"] == 12
    assert seen["held"] == 1, "the child's own"


GENERATIONS = """
import os, sys
from pathlib import Path
from services.metric_files import Identity
identity = Identity(Path(sys.argv[1]))
identity()
if child := os.fork():
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
opened = os.open(os.devnull, os.O_RDONLY)  # under the number that the lock had
if grandchild := os.fork():
    os._exit(os.waitstatus_to_exitcode(os.waitpid(grandchild, 0)[1]))
os.fstat(opened)
os._exit(0)
"""


def test_a_fork_of_a_fork_keeps_its_files_open(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", GENERATIONS, str(tmp_path)], env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert (run.returncode, run.stderr) == (0, "")


def test_prepare_empties_the_folder(start: Callable[..., Child], tmp_path: Path) -> None:
    kill(start(5))
    render(tmp_path)
    prepare(tmp_path)
    assert numbers(render(tmp_path)) == {}
    prepare(tmp_path / "not" / "there")
    assert (tmp_path / "not" / "there").is_dir()


CRASH = """
import os, sys
from pathlib import Path
from services import metric_files
from tests.ports import free_port
left = int(sys.argv[2])
def watched(original):
    def step(*args, **options):
        global left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), 9)
        return original(*args, **options)
    return step
for name in ("rename", "unlink", "write_text"):
    setattr(Path, name, watched(getattr(Path, name)))
metric_files.MmapedDict.write_value = watched(metric_files.MmapedDict.write_value)
print(metric_files.render(Path(sys.argv[1])).decode())
"""


def test_a_crash_anywhere_in_a_compaction_loses_and_doubles_nothing(
    start: Callable[..., Child], tmp_path: Path
) -> None:
    """Killed before its first, second, .. change of the folder, until one run has no more of them."""
    total, steps = 0, 0
    start(1)
    total += 1
    while True:
        kill(start(2, 3))
        total += 5
        command = [sys.executable, "-c", CRASH, str(tmp_path), str(steps)]
        crashed = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)
        seen = numbers(render(tmp_path))
        assert (seen["counted_total it"], seen["held"]) == (total, 1), f"after {steps} steps"
        assert seen["seconds_count it"] == 1 + 2 * (steps + 1)
        if crashed.returncode == 0:
            break
        assert crashed.returncode == -signal.SIGKILL, crashed.stderr
        steps += 1
    assert steps > 10
    assert len(list(tmp_path.iterdir())) == 7


def test_the_sum_never_falls_while_processes_die_and_several_read(start: Callable[..., Child], tmp_path: Path) -> None:
    stop, faults, reads = threading.Event(), [], []

    def read() -> None:
        last: dict[str, float] = {}
        while not stop.is_set():
            seen = numbers(render(tmp_path))
            reads.append(seen)
            for name, value in last.items():
                if name != "held" and not seen.get(name, -1.0) >= value:
                    faults.append((name, value, seen.get(name)))
            last = seen

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for number in range(12):
        child = start()
        for step in range(20):
            tell(child, f"count {number + step}")
        kill(child)
    stop.set()
    for reader in readers:
        reader.join()
    assert not faults
    assert len(reads) > 30
    wanted = sum(number + step for number in range(12) for step in range(20))
    assert numbers(render(tmp_path))["counted_total it"] == wanted


@given(st.lists(st.floats(0, 1e9), min_size=1, max_size=8))
def test_merging_rounds_up_by_no_more_than_the_last_bit(counted: list[float]) -> None:
    exact, merged = sum(map(Fraction, counted), Fraction()), Fraction(metric_files._no_less(counted))
    assert exact <= merged <= exact * (1 + Fraction(1, 2**52)) + Fraction(5e-324)


def test_a_node_with_a_folder_of_its_own_counts_there() -> None:
    set_by_launcher = {"PROMETHEUS_MULTIPROC_DIR": "/one/metrics"}
    assert counting_folder({}) is None
    assert counting_folder({"OCCAM_DIRECTORY": "/two"}) is None
    assert counting_folder(set_by_launcher) == Path("/one/metrics")
    assert counting_folder(set_by_launcher | {"OCCAM_DIRECTORY": "/two"}) == Path("/two/metrics")


def test_the_exporter_shows_the_folder_and_takes_nothing_from_it(start: Callable[..., Child], tmp_path: Path) -> None:
    (tmp_path / "node").mkdir()
    folder = tmp_path / "node" / "metrics"
    folder.symlink_to(tmp_path)
    kill(start(5))
    start(4)
    command = [sys.executable, "-m", "services.cli", "exporter", "--host", "127.0.0.1", "--port"]
    for _ in range(2):  # it is started anew
        port = free_port()
        environment = ENVIRONMENT | {"OCCAM_DIRECTORY": str(tmp_path / "node")}
        exporter = subprocess.Popen([*command, str(port)], env=environment, stderr=subprocess.PIPE, text=True)
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=10) as http:
                until_answers(http)
                assert numbers(http.get("/metrics").content) == numbers(render(tmp_path))
                assert numbers(http.get("/metrics?a=b").content)["counted_total it"] == 9
                assert http.get("/metrics").headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
                assert http.get("/metrics").headers["server"] == "occam"
                assert http.get("/").status_code == 404
                assert http.post("/metrics").status_code == 501
                folder.unlink()
                folder.write_text("not a folder")
                refused = http.get("/metrics")
                assert (refused.status_code, str(tmp_path) in refused.text) == (500, False)
                folder.unlink()
                folder.symlink_to(tmp_path)
        finally:
            exporter.terminate()
            _, said = exporter.communicate(timeout=10)
        assert exporter.returncode == 0
        assert said == f"occam exporter: {folder} cannot be read: File exists.\n"


def test_an_exporter_of_no_folder_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert cli.main(["exporter"]) == 1
    assert "OCCAM_DIRECTORY must name" in capsys.readouterr().err
    monkeypatch.setenv("OCCAM_DIRECTORY", str(tmp_path))
    assert cli.main(["exporter", "--port", "99999"]) == 1
    assert capsys.readouterr().err.startswith("occam: Port 99999 of 0.0.0.0 cannot be used")


def until_answers(http: httpx.Client) -> None:
    deadline = time.monotonic() + 20
    while True:
        try:
            assert http.get("/healthz").text == "ok\n"
            return
        except httpx.ConnectError:
            assert time.monotonic() < deadline
            time.sleep(0.05)

import asyncio
import errno
import fcntl
import gc
import os
import resource
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from occam.errors import CorruptState, FetchDeclined, FetchGivenUp, StoreUnavailable
from occam.kv import codec, layout
from occam.kv.break_even import BreakEven
from occam.kv.store import MemoryStore, TieredStore, TierEvent
from occam.tensors import PrefixState
from services import node_folder
from services.node_folder import NodeFolder
from services.node_store import NodeStore
from tests.states import assert_same, make_key, make_state

KEY, A, B, C = (make_key(name) for name in ("video", "a", "b", "c"))
STATE = make_state(tokens=40)
ROOM = 64 << 20


class Clock:
    """Goes on by a second whenever somebody looks; ahead of the kernel's, which sets access times too."""

    def __init__(self) -> None:
        self.now = time.time() + 1e7

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "kv"


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small states in many parts."""
    monkeypatch.setattr(layout, "PART_BYTES", 256)


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 120))


def path_of(folder: Path, key: Any = KEY) -> Path:
    return folder / f"{key.digest}.state"


def size_of(state: PrefixState) -> int:
    manifest, _ = codec.encode(state)
    return len(manifest.to_bytes()) + 1 + manifest.nbytes


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("tokens", [0, 40])
def test_round_trip_is_bitwise(folder: Path, small_parts: None, dtype: torch.dtype, tokens: int) -> None:
    async def test() -> None:
        state = make_state(tokens=tokens, views=min(tokens, 2), dtype=dtype)
        store = NodeStore(folder, ROOM)
        assert await store.get(KEY) is None
        assert await store.put(KEY, state)
        restored = await store.get(KEY)
        assert restored is not None
        assert_same(restored, state)
        assert all(t.data_ptr() % 64 == 0 for t in (restored.hidden, *restored.keys, *restored.values))
        assert await store.get(make_key("another")) is None

    run(test)


def test_another_process_reads_the_same_bits(folder: Path) -> None:
    run(lambda: NodeStore(folder, ROOM).put(KEY, make_state(7)))
    reader = """
import asyncio, sys
from pathlib import Path
from services.node_store import NodeStore
from tests.states import assert_same, make_key, make_state
assert_same(asyncio.run(NodeStore(Path(sys.argv[1]), 1 << 20).get(make_key())), make_state(7))
"""
    subprocess.run([sys.executable, "-c", reader, str(folder)], check=True, timeout=120)


def test_nobody_else_can_look_in(folder: Path) -> None:
    before = os.umask(0)
    try:
        run(lambda: NodeStore(folder, ROOM).put(KEY, STATE))
    finally:
        os.umask(before)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert [(path, path.stat().st_mode & 0o777) for path in folder.iterdir()] == [(path_of(folder), 0o600)]


def test_the_least_recently_used_leave_first(folder: Path) -> None:
    async def test() -> None:
        store = NodeStore(folder, 2 * size_of(STATE), clock=Clock())
        for key in (A, B):
            assert await store.put(key, STATE)
        assert await store.get(A) is not None
        assert await store.put(C, STATE)
        assert [await store.get(key) is not None for key in (A, B, C)] == [True, False, True]
        assert sum(path.stat().st_size for path in folder.iterdir()) == 2 * size_of(STATE)
        assert await store.put(C, STATE), "again is fine"
        assert await store.get(C) is not None

    run(test)


def test_a_state_larger_than_the_tier_is_refused_and_evicts_nothing(folder: Path) -> None:
    async def test() -> None:
        for max_bytes in (codec.describe(STATE).nbytes - 1, size_of(STATE) - 1):
            store = NodeStore(folder, max_bytes)
            assert await store.put(A, make_state())
            assert not await store.put(B, STATE)
            assert await store.get(A) is not None
            assert [path.name for path in folder.iterdir()] == [path_of(folder, A).name]

    run(test)


def test_an_entry_lives_for_its_time_after_it_was_written(folder: Path) -> None:
    async def test() -> None:
        clock = Clock()
        store = NodeStore(folder, ROOM, ttl_s=100, clock=clock)
        await store.put(A, STATE)
        await store.put(B, STATE)
        clock.now += 90
        assert await store.get(A) is not None, "which does not make it younger"
        clock.now += 10
        assert await store.get(A) is None
        assert [path.name for path in folder.iterdir()] == [path_of(folder, B).name]
        await store.put(C, STATE)
        assert [path.name for path in folder.iterdir()] == [path_of(folder, C).name], (
            "B too, though nobody asked for it"
        )

    run(test)


def test_delete_leaves_nothing(folder: Path) -> None:
    async def test() -> None:
        store = NodeStore(folder, ROOM)
        await store.delete(KEY)
        await store.put(KEY, STATE)
        await store.delete(KEY)
        await store.delete(KEY)
        assert list(folder.iterdir()) == []

    run(test)


def test_a_write_on_its_way_does_not_bring_back_what_was_deleted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread cannot be cancelled, so the delete waits for it."""
    rename = os.rename

    def late(*args: Any, **options: Any) -> None:
        time.sleep(0.3)
        rename(*args, **options)

    monkeypatch.setattr(os, "rename", late)

    async def test() -> None:
        store = NodeStore(folder, ROOM)
        tiers = TieredStore([MemoryStore(ROOM), store], lambda _: None)
        await tiers.put(KEY, STATE)
        while not folder.exists() or not list(folder.iterdir()):
            await asyncio.sleep(0.01)
        await tiers.delete(KEY)
        assert list(folder.iterdir()) == []
        await tiers.drain()
        assert list(folder.iterdir()) == []

    run(test)


@pytest.mark.parametrize("refused", [False, True])
def test_nor_does_it_when_it_is_deleted_again_meanwhile(
    folder: Path, monkeypatch: pytest.MonkeyPatch, refused: bool
) -> None:
    rename, renames, goes_on = os.rename, threading.Event(), threading.Event()

    def late(*args: Any, **options: Any) -> None:
        renames.set()
        goes_on.wait(20)
        if refused:
            raise OSError(errno.EIO, "Input/output error")
        rename(*args, **options)

    monkeypatch.setattr(os, "rename", late)

    async def test() -> None:
        unseen: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: unseen.append(context))
        tiers = TieredStore([MemoryStore(ROOM), NodeStore(folder, ROOM)], lambda _: None)
        await tiers.put(KEY, STATE)
        assert await asyncio.to_thread(renames.wait, 20)
        deletes = []
        for _ in range(3):
            deletes.append(asyncio.create_task(tiers.delete(KEY)))
            await asyncio.sleep(0.05)  # by then the write knows of this one, and the next cancels it anew
        done, _ = await asyncio.wait(deletes, timeout=0.3)
        assert not done, "the write is still on its way"
        goes_on.set()
        await asyncio.gather(*deletes)
        await tiers.drain()
        assert list(folder.iterdir()) == []
        gc.collect()
        assert unseen == []

    try:
        run(test)
    finally:
        goes_on.set()


def link_outside(path: Path) -> None:
    outside = path.parent.parent / "outside"
    path.rename(outside)
    path.symlink_to(outside)


def flip(position: int) -> Callable[[Path], None]:
    def flipped(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[position] ^= 1
        path.write_bytes(data)

    return flipped


def replace_by(make: Callable[[Path], object]) -> Callable[[Path], None]:
    def replaced(path: Path) -> None:
        path.unlink()
        make(path)

    return replaced


def tree(path: Path) -> None:
    path.mkdir()
    (path / "inside").write_bytes(b"x")


def listen(path: Path) -> None:
    here = os.open(path.parent, os.O_RDONLY)  # a socket's address is short
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(f"/proc/self/fd/{here}/{path.name}")
    os.close(here)


HOSTILE: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "torn": lambda path: os.truncate(path, path.stat().st_size - 1),
    "torn within its manifest": lambda path: os.truncate(path, 100),
    "longer": lambda path: path.open("ab").close() or os.truncate(path, path.stat().st_size + 1),
    "larger than the tier": lambda path: os.truncate(path, ROOM + 1),
    "its manifest flipped": flip(80),
    "its first part flipped": flip(-codec.describe(STATE).nbytes),
    "its last byte flipped": flip(-1),
    "zeros, as after a crash": lambda path: path.write_bytes(b"\0" * path.stat().st_size),
    "one endless line": lambda path: path.write_bytes(b"x" * (3 << 20)),
    "a pickle": lambda path: path.write_bytes(b"\x80\x04N."),
    "a link to a good one": link_outside,
    "a link to nothing": replace_by(lambda path: path.symlink_to("nowhere")),
    "a link to a device": replace_by(lambda path: path.symlink_to("/dev/zero")),
    "a pipe": replace_by(os.mkfifo),
    "a socket": replace_by(listen),
    "a folder": replace_by(tree),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_no_entry_of_ours_is_counted_removed_and_healed(folder: Path, small_parts: None, name: str) -> None:
    async def test() -> None:
        seen: list[TierEvent] = []
        store = NodeStore(folder, ROOM)
        tiers = TieredStore([store], seen.append)
        await store.put(KEY, STATE)
        HOSTILE[name](path_of(folder))
        assert os.path.lexists(path_of(folder))
        with pytest.raises(CorruptState):
            await store.get(KEY)
        assert list(folder.iterdir()) == []
        await store.put(KEY, STATE)
        HOSTILE[name](path_of(folder))
        assert (await tiers.get(KEY, fits=lambda _: True)).state is None
        assert [(each.tier, each.result, each.reason) for each in seen] == [("node", "failed", "corrupt")]
        await store.put(KEY, STATE)
        assert await store.get(KEY) is not None
        if name == "a link to a good one":
            assert (folder.parent / "outside").stat().st_size == size_of(STATE), "which is no business of ours"

    run(test)


@pytest.mark.parametrize("name", ["a pipe", "larger than the tier"])
def test_what_is_no_entry_of_ours_is_not_even_read(folder: Path, name: str) -> None:
    store = NodeFolder(folder, ROOM, ttl_s=100)
    assert store.write(KEY.digest, [b"bytes"])
    assert store.read(KEY.digest, lambda file: file.read()) == b"bytes"
    HOSTILE[name](path_of(folder))
    with pytest.raises(CorruptState):
        store.read(KEY.digest, lambda _: pytest.fail("read"))


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_no_entry_of_ours_is_not_kept_open(folder: Path, name: str) -> None:
    store = NodeFolder(folder, ROOM, ttl_s=100)
    assert store.write(KEY.digest, [b"x" * size_of(STATE)])
    HOSTILE[name](path_of(folder))
    with suppress(CorruptState):
        store.read(KEY.digest, lambda _: None)
    assert opened_in(folder) == []


def opened_in(folder: Path) -> list[str]:
    """What this process holds open in the folder."""
    links = []
    for number in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # closed meanwhile
            links.append(os.readlink(f"/proc/self/fd/{number}"))
    return [link for link in links if link.startswith(str(folder))]


def test_a_file_of_another_user_is_removed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        store = NodeStore(folder, ROOM)
        await store.put(KEY, STATE)
        fstat = os.fstat

        def foreign(file: int) -> os.stat_result:
            found = fstat(file)
            regular = found.st_mode & 0o100000
            return os.stat_result((*found[:4], found.st_uid + bool(regular), *found[5:]))

        with monkeypatch.context() as patched:
            patched.setattr(node_folder.os, "fstat", foreign)
            with pytest.raises(CorruptState, match="user"):
                await store.get(KEY)
        assert list(folder.iterdir()) == []

    run(test)


def test_a_manifest_is_no_reason_to_allocate_what_the_file_does_not_have(folder: Path) -> None:
    async def test() -> None:
        store = NodeStore(folder, 1 << 62)
        await store.put(KEY, STATE)
        huge = replace(codec.describe(STATE), tokens=1 << 24, width=400)
        huge = replace(huge, parts=("0" * 64,) * len(huge.part_sizes))
        assert huge.nbytes > 50 << 30
        path_of(folder).write_bytes(huge.to_bytes() + b"\n")
        with pytest.raises(CorruptState, match="by its manifest"):
            await store.get(KEY)

    run(test)


def test_a_disk_that_is_slower_than_computing_is_given_up_and_left(
    folder: Path, small_parts: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test() -> None:
        now, read = 0.0, 0
        check = layout.Reader.check

        def slow(reader: layout.Reader, index: int) -> None:
            nonlocal now, read
            now, read = now + 0.5, read + 1
            check(reader, index)

        monkeypatch.setattr(layout.Reader, "check", slow)
        choice = BreakEven(lambda: now)
        store = NodeStore(folder, ROOM, break_even=choice)
        await store.put(KEY, STATE)
        for _ in range(3):
            choice.built(encoded=STATE.encoded, tokens=len(STATE), seconds=1.0, prefill_s=0.5)
        with pytest.raises(FetchGivenUp):
            await store.get(KEY)
        assert read == 1, "of many parts"
        with pytest.raises(FetchDeclined):
            await store.get(KEY)
        assert read == 1

    run(test)


@pytest.mark.parametrize(
    "make", [lambda p: p.mkdir(mode=0o755), lambda p: p.write_bytes(b""), lambda p: p.symlink_to(".")]
)
def test_a_folder_that_is_not_ours_alone_is_left_alone(folder: Path, make: Callable[[Path], object]) -> None:
    async def test() -> None:
        make(folder)
        store = NodeStore(folder, ROOM)
        for call in (lambda: store.get(KEY), lambda: store.put(KEY, STATE), lambda: store.delete(KEY)):
            with pytest.raises(StoreUnavailable, match="node's cache folder"):
                await call()
        assert not list(folder.parent.rglob("*.state"))

    run(test)


def test_a_folder_of_another_user_is_left_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(lambda: NodeStore(folder, ROOM).put(KEY, STATE))
    monkeypatch.setattr(node_folder.os, "geteuid", lambda: 12345)
    with pytest.raises(StoreUnavailable, match="0700"):
        run(lambda: NodeStore(folder, ROOM).get(KEY))


def test_a_folder_that_went_comes_back_but_not_its_parent(folder: Path) -> None:
    async def test() -> None:
        store = NodeStore(folder, ROOM)
        await store.put(KEY, STATE)
        path_of(folder).unlink()
        folder.rmdir()
        assert await store.get(KEY) is None
        assert await store.put(KEY, STATE)
        orphan = NodeStore(folder / "gone" / "kv", ROOM)
        with pytest.raises(StoreUnavailable, match="No such file"):
            await orphan.put(KEY, STATE)

    run(test)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EIO, errno.EMFILE])
@pytest.mark.parametrize("call", ["mkdir", "open", "ftruncate", "rename", "scandir", "utime"])
def test_what_the_system_refuses_costs_a_miss(
    folder: Path, monkeypatch: pytest.MonkeyPatch, number: int, call: str
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    async def test() -> None:
        seen: list[TierEvent] = []
        tiers = TieredStore([NodeStore(folder, ROOM)], seen.append)
        with monkeypatch.context() as patched:
            patched.setattr(os, call, refuse)
            await tiers.put(KEY, STATE)
        assert [(each.op, each.result, each.reason) for each in seen] == [("put", "failed", "unavailable")]
        assert not folder.exists() or not list(folder.iterdir()), "nothing half-written stays"
        await tiers.put(KEY, STATE)
        assert (await tiers.get(KEY, fits=lambda _: True)).tier == "node"

    run(test)


def test_a_disk_that_is_full_half_way_leaves_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real refusal of a real write: the limit on a file's size."""
    state = make_state(tokens=20_000)

    @contextmanager
    def limited(nbytes: int) -> Iterator[None]:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    async def test() -> None:
        store = NodeStore(folder, ROOM)
        monkeypatch.setattr(os, "ftruncate", lambda *_: None)
        with limited(1 << 20), pytest.raises(StoreUnavailable, match="File too large"):
            await store.put(KEY, state)
        assert list(folder.iterdir()) == []
        assert await store.put(KEY, state)

    run(test)


def test_a_read_that_fails_is_an_outage_and_removes_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        store = NodeStore(folder, ROOM)
        await store.put(KEY, STATE)

        def refuse(*_: object) -> None:
            raise OSError(errno.EIO, "Input/output error")

        with monkeypatch.context() as patched:
            patched.setattr(layout.Reader, "check", refuse)
            with pytest.raises(StoreUnavailable, match="Input/output error"):
                await store.get(KEY)
        assert await store.get(KEY) is not None

    run(test)


def test_a_file_that_is_cut_short_while_it_is_read_is_corrupt(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        monkeypatch.setattr(layout, "PART_BYTES", 64 << 10)
        check = layout.Reader.check

        def cut(reader: layout.Reader, index: int) -> None:
            check(reader, index)
            if path_of(folder).exists():
                os.truncate(path_of(folder), 80 << 10)

        monkeypatch.setattr(layout.Reader, "check", cut)
        store = NodeStore(folder, ROOM)
        await store.put(KEY, make_state(tokens=3000))
        with pytest.raises(CorruptState, match="ends within part 1 of"):
            await store.get(KEY)
        assert list(folder.iterdir()) == []

    run(test)


LEFT = "f" * 64 + "." + "0" * 16 + ".unfinished"


def test_what_a_dead_writer_left_goes_and_what_a_living_one_writes_stays(folder: Path) -> None:
    async def test() -> None:
        store = NodeStore(folder, 3 * size_of(STATE))
        await store.put(A, STATE)
        (folder / LEFT).write_bytes(b"x" * size_of(STATE))
        with (folder / LEFT).open("rb") as writer:
            fcntl.flock(writer, fcntl.LOCK_EX)
            await store.put(B, STATE)
            assert (folder / LEFT).exists()
            await store.put(C, STATE)
            assert (folder / LEFT).exists()
            assert [await store.get(key) is not None for key in (A, B, C)] == [False, True, True], "it takes room"
        await store.put(A, STATE)
        assert not (folder / LEFT).exists()

    run(test)


def test_a_killed_writer_leaves_what_the_next_one_removes(folder: Path) -> None:
    writer = """
import asyncio, os, sys
from pathlib import Path
from services.node_store import NodeStore
from tests.states import make_key, make_state
os.rename = lambda *_, **__: os.kill(os.getpid(), 9)
asyncio.run(NodeStore(Path(sys.argv[1]), 1 << 20).put(make_key(), make_state()))
"""
    ended = subprocess.run([sys.executable, "-c", writer, str(folder)], timeout=120)
    assert ended.returncode == -9
    assert [path.suffix for path in folder.iterdir()] == [".unfinished"]
    run(lambda: NodeStore(folder, ROOM).put(A, STATE))
    assert [path.name for path in folder.iterdir()] == [path_of(folder, A).name]


def test_no_room_beside_what_others_write_is_a_refusal_and_evicts_nothing(folder: Path) -> None:
    async def test() -> None:
        store = NodeStore(folder, 2 * size_of(STATE))
        await store.put(A, make_state())
        (folder / LEFT).write_bytes(b"x" * (size_of(STATE) + 1))
        with (folder / LEFT).open("rb") as writer:
            fcntl.flock(writer, fcntl.LOCK_EX)
            assert not await store.put(B, STATE)
        assert await store.get(A) is not None

    run(test)


def test_files_by_other_names_are_neither_counted_nor_touched(folder: Path) -> None:
    async def test() -> None:
        folder.mkdir(mode=0o700)
        names = ["thesis.txt", "e" * 64, f"{'E' * 64}.state", f"{'e' * 63}.state", f"{'e' * 64}.state.bak"]
        for name in names:
            (folder / name).write_bytes(b"x" * size_of(STATE))
            os.utime(folder / name, (0, 0))
        store = NodeStore(folder, size_of(STATE))
        assert await store.put(A, STATE)
        assert await store.put(B, STATE)
        assert {path.name for path in folder.iterdir()} == {*names, path_of(folder, B).name}

    run(test)


def test_two_processes_write_and_evict_at_once(folder: Path) -> None:
    """All files together never pass the limit, unfinished ones included; who reads gets the whole of what was put."""
    worker = """
import asyncio, random, sys, torch
from pathlib import Path
from services.node_store import NodeStore
from tests.states import make_key, make_state
states = [make_state(seed, tokens=400) for seed in range(6)]
async def work(store, choose):
    for _ in range(40):
        seed = choose.randrange(6)
        found = await store.get(make_key(str(seed)))
        if found is None:
            await store.put(make_key(str(seed)), states[seed])
        else:
            assert torch.equal(found.hidden.view(torch.int32), states[seed].hidden.view(torch.int32))
            hits.append(seed)
hits = []
async def test():
    store = NodeStore(Path(sys.argv[1]), int(sys.argv[2]))
    await asyncio.gather(*(work(store, random.Random(f"{sys.argv[3]} {i}")) for i in range(3)))
asyncio.run(test())
print(len(hits))
"""
    limit = 3 * size_of(make_state(tokens=400)) + 100
    folder.mkdir(mode=0o700)
    workers = [
        subprocess.Popen(
            [sys.executable, "-W", "error", "-c", worker, str(folder), str(limit), name], stdout=subprocess.PIPE
        )
        for name in ("one", "other")
    ]
    most = 0
    while any(each.poll() is None for each in workers):
        most = max(most, locked_bytes(folder))
        time.sleep(0.001)
    for each in workers:
        output, _ = each.communicate(timeout=1)
        assert each.returncode == 0
        assert 0 < int(output) < 120, "hits, and misses: what one had written the other evicted"
    assert limit / 2 < most <= limit
    assert {path.suffix for path in folder.iterdir()} == {".state"}


def test_a_process_that_keeps_the_lock_is_not_waited_for(folder: Path) -> None:
    holder = """
import fcntl, os, sys, time
fcntl.flock(os.open(sys.argv[1], os.O_RDONLY), fcntl.LOCK_EX)
print("locked", flush=True)
time.sleep(30)
"""
    folder.mkdir(mode=0o700)
    process = subprocess.Popen([sys.executable, "-c", holder, str(folder)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"locked\n"

    async def test() -> None:
        seen: list[TierEvent] = []
        store = NodeStore(folder, ROOM)
        tiers = TieredStore([MemoryStore(ROOM), store], seen.append)
        with pytest.raises(StoreUnavailable, match="locked by others for 1 s"):
            await store.put(KEY, STATE)
        await tiers.put(KEY, STATE)
        await asyncio.sleep(0)  # the write begins
        await tiers.delete(KEY)
        await tiers.put(KEY, STATE)
        await tiers.drain()
        assert (seen[-1].tier, seen[-1].result, seen[-1].reason) == ("node", "failed", "unavailable")
        assert process.poll() is None, "the lock was held all the time"
        process.kill()
        process.wait()
        assert await store.put(KEY, STATE)

    try:
        run(test)
    finally:
        process.kill()
        process.communicate()


def test_a_disk_that_hangs_holds_neither_other_threads_nor_the_end(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    goes_on, waited = threading.Event(), []

    def hang(*_: object) -> None:
        waited.append(goes_on.wait(20))

    monkeypatch.setattr(NodeFolder, "read", hang)

    async def test() -> None:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
        store = NodeStore(folder, ROOM)
        gets = [asyncio.create_task(store.get(KEY)) for _ in range(3)]
        await asyncio.sleep(0)  # they begin
        await asyncio.to_thread(lambda: None)
        await store.aclose()
        goes_on.set()
        assert await asyncio.gather(*gets) == [None] * 3
        assert waited == [True] * 3, "nothing waited for the disk"
        with pytest.raises(RuntimeError, match="shutdown"):
            await store.get(KEY)

    run(test)


def locked_bytes(folder: Path) -> int:
    """Bytes of all files at one moment: nothing begins or ends under the lock."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        found = []
        for path in folder.iterdir():
            with suppress(FileNotFoundError):  # corrupt or expired ones leave at any time
                found.append(path.stat().st_size)
        return sum(found)
    finally:
        os.close(descriptor)

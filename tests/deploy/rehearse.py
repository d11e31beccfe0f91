"""Follow deploy/Dockerfile step by step in a bare Debian root, and ask the service in it a question; no image is built.

    sudo make rehearse ARGS='--build-arg TORCH_INDEX=file:///srv/wheels'

Needs root, `debootstrap`, and a network or mirrors for apt and pip. FROM a released Debian is that release as
debootstrap makes it; all else is done as written: COPY through .dockerignore, RUN in a chroot with the ENV so far. What
comes of it then runs as the image's user, without capabilities, in a root that is mounted read-only, with folders where
the manifests mount volumes: HEALTHCHECK must succeed, an answer be right, what KubeRay calls be there, and SIGTERM end
it with 0.
"""

import argparse
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.deploy.dockerfile import Instruction, Stage, is_ignored, line_of, pairs, stages

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "deploy" / "Dockerfile"
VOLUMES = ("/tmp", "/var/lib/occam", "/models")
SEED = 1000004
QUESTION, TRUTH = "what color is the ring", "purple"
CLIP = f"""
from pathlib import Path
from services.demo import _write_clip
print(*[question.text + ": " + question.answer for question in _write_clip(Path("/tmp/clip.mp4"), {SEED})], sep="; ")
"""
PATIENCE_S = 300
# What an image has and a folder has not: /proc, devices, and names of hosts; gone with the namespace.
MOUNTS = """
set -e
mount --make-rprivate /
mount --bind "$1" "$1"
mount -t proc proc "$1/proc"
mount --rbind /dev "$1/dev"
for file in /etc/resolv.conf /etc/hosts; do touch "$1$file"; mount --bind $file "$1$file"; done
"""


class Rehearsal:
    """The roots of stages, made one after another under `folder`."""

    def __init__(
        self, folder: Path, build_args: dict[str, str], environment: dict[str, str], given: list[Path]
    ) -> None:
        self._folder = folder
        self._args = build_args
        self._environment = environment
        # Files of this machine that its network needs: certificates, pip's settings, wheels; no stage keeps them.
        self._given = "".join(map(_mounted, given))
        self._stages = stages(DOCKERFILE)
        self._made: dict[str, Path] = {}

    def make(self, name: str) -> Path:
        """The root of a stage, with those it stands on."""
        if name not in self._made:
            stage = next((stage for stage in self._stages if stage.name == name), None)
            root = self._folder / name.replace(":", "-")
            if root.exists():
                print(f"{name}: as it lies in {root}", flush=True)
            elif stage is None:
                _debootstrap(root, name)
            else:
                base = self.make(stage.base)
                print(f"FROM {stage.base} AS {name}", flush=True)
                subprocess.run(["cp", "--archive", "--reflink=auto", base, root], check=True)
                self._follow(stage, root)
            self._made[name] = root
        return self._made[name]

    def environment(self, name: str) -> dict[str, str]:
        """The ENV of a stage, those below included."""
        line = line_of(self._stages, name)
        found = (pairs(step.rest) for stage in line for step in stage.instructions if step.name == "ENV")
        return {name: value for values in found for name, value in values.items()}

    def last(self, name: str, instruction: str) -> Instruction:
        """The instruction that holds in a stage."""
        line = line_of(self._stages, name)
        return [step for stage in line for step in stage.instructions if step.name == instruction][-1]

    def _follow(self, stage: Stage, root: Path) -> None:
        below = self.environment(stage.base) if any(s.name == stage.base for s in self._stages) else {}
        environment, folder = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"} | below, "/"
        for step in (step for below in line_of(self._stages, stage.name)[:-1] for step in below.instructions):
            folder = step.rest if step.name == "WORKDIR" else folder
        for step in stage.instructions:
            if step.name == "ENV":
                environment |= pairs(step.rest)
            elif step.name == "ARG":
                environment |= {name: self._args.get(name, value) for name, value in pairs(step.rest).items()}
            elif step.name == "WORKDIR":
                folder = step.rest
                (root / folder.lstrip("/")).mkdir(parents=True, exist_ok=True)
            elif step.name == "COPY":
                self._copy(step, root, folder)
            elif step.name == "RUN":
                print(f"  RUN {step.rest}", flush=True)
                command = f"cd {folder}; {step.rest}"
                built = _inside(root, ["/bin/sh", "-c", command], environment | self._environment, self._given)
                if built.returncode:
                    raise SystemExit(f"{built.stdout}\n{step.rest} ended with {built.returncode}")

    def _copy(self, step: Instruction, root: Path, folder: str) -> None:
        *sources, target = step.words
        print(f"  COPY {step.rest}", flush=True)
        to = root / os.path.join(folder, target).lstrip("/")
        stage = step.flag("from")
        for source in sources:
            place = self.make(stage) / source.lstrip("/") if stage else ROOT / source
            into = to / place.name if target.endswith("/") else to
            if not stage and is_ignored(ROOT / ".dockerignore", source):
                raise SystemExit(f".dockerignore leaves out {source}")
            if place.is_dir():
                shutil.copytree(place, into, symlinks=True, dirs_exist_ok=True, ignore=None if stage else _ignored)
            else:
                into.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(place, into)


def _mounted(path: Path) -> str:
    place = f'"$1"{shlex.quote(str(path))}'
    make = f"mkdir -p {place}" if path.is_dir() else f'mkdir -p "$1"{shlex.quote(str(path.parent))}; touch {place}'
    return f"{make}; mount --bind {shlex.quote(str(path))} {place}\n"


def _ignored(folder: str, names: list[str]) -> set[str]:
    below = Path(folder).relative_to(ROOT)
    return {name for name in names if is_ignored(ROOT / ".dockerignore", str(below / name))}


def _debootstrap(root: Path, image: str) -> None:
    if not image.startswith("debian:12"):
        raise SystemExit(f"{image} is no release that this script knows.")
    print(f"{image}: debootstrap --variant=minbase bookworm", flush=True)
    said = subprocess.run(["debootstrap", "--variant=minbase", "bookworm", root], capture_output=True, text=True)
    if said.returncode:
        raise SystemExit(said.stdout[-2000:] + said.stderr)
    print(f"  which made Debian {(root / 'etc/debian_version').read_text().strip()}", flush=True)


def _command(root: Path, command: list[str], environment: dict[str, str], then: str) -> list[str]:
    values = [f"{name}={value}" for name, value in environment.items()]
    script = f'{MOUNTS}\n{then}\nroot=$1; shift; exec chroot "$root" "$@"'
    return ["unshare", "--mount", "sh", "-c", script, "sh", str(root), "/usr/bin/env", "-i", *values, *command]


def _inside(
    root: Path, command: list[str], environment: dict[str, str], then: str
) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(_command(root, command, environment, then), text=True, stdout=subprocess.PIPE)


class Container:
    """What runs an image, as far as it matters: its user, nothing to write to but volumes, no capability."""

    def __init__(self, rehearsal: Rehearsal, target: str, volumes: Path) -> None:
        self.root, self._environment = rehearsal.make(target), rehearsal.environment(target)
        uid, gid = rehearsal.last(target, "USER").rest.split(":")
        drop = ["setpriv", f"--reuid={uid}", f"--regid={gid}", "--clear-groups", "--no-new-privs"]
        self._user = [*drop, "--bounding-set=-all", "--inh-caps=-all"]
        folder = rehearsal.last(target, "WORKDIR").rest
        self._mounts = f'mount -o remount,bind,ro "$1"; cd "$1{folder}"\n'
        for volume in VOLUMES:
            held = volumes / volume.strip("/").replace("/", "-")
            shutil.rmtree(held, ignore_errors=True)
            held.mkdir(parents=True)
            shutil.chown(held, int(uid), int(gid))
            self._mounts += f'mount --bind {shlex.quote(str(held))} "$1{volume}"\n'

    def start(self, command: list[str]) -> "subprocess.Popen[bytes]":
        """Start a command, and do not wait for it."""
        return subprocess.Popen(_command(self.root, [*self._user, *command], self._environment, self._mounts))

    def run(self, *command: str) -> "subprocess.CompletedProcess[str]":
        """A command and what it says."""
        return _inside(self.root, [*self._user, *command], self._environment, self._mounts)

    def check(self, *command: str) -> str:
        """A command that must succeed, and what it says."""
        done = self.run(*command)
        if done.returncode:
            raise SystemExit(f"{shlex.join(command)} ended with {done.returncode}: {done.stdout}")
        return done.stdout.strip()


def ask(container: Container, rehearsal: Rehearsal, target: str) -> None:
    """Start the image's command, wait for its health check, ask, and stop it; SystemExit where anything is wrong."""
    service = container.start(rehearsal.last(target, "ENTRYPOINT").listed + rehearsal.last(target, "CMD").listed)
    try:
        began = time.monotonic()
        health = rehearsal.last(target, "HEALTHCHECK").listed
        while container.run("/bin/sh", "-c", '"$@" 2>&-', "sh", *health).returncode:
            if service.poll() is not None or time.monotonic() > began + PATIENCE_S:
                raise SystemExit("the service does not become healthy")
            time.sleep(2)
        print(f"healthy after {time.monotonic() - began:.0f} s", flush=True)
        print("the truth:", container.check("python", "-c", CLIP))
        answer = container.check("occam", "ask", "--server", "http://127.0.0.1:8000", "/tmp/clip.mp4", QUESTION)
        print(f"{QUESTION}\n{answer}")
        if answer.split()[0] != TRUTH:
            raise SystemExit(f"that is wrong: {TRUTH}")
        service.send_signal(signal.SIGTERM)
        if ended := service.wait(60):
            raise SystemExit(f"the service ended with {ended}")
    finally:
        service.kill()
        service.wait()


def main() -> None:
    """Follow the Dockerfile for one target, and try what comes of it."""
    parser = argparse.ArgumentParser(prog="python -m tests.deploy.rehearse", description=__doc__)
    parser.add_argument("folder", type=Path, help="folder of the roots; stages that lie there are taken as they are")
    parser.add_argument("--target", default="cpu")
    parser.add_argument("--build-arg", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--env", action="append", default=[], metavar="NAME=VALUE", help="for RUN alone")
    parser.add_argument(
        "--give", action="append", default=[], type=Path, metavar="PATH", help="file or folder that RUN sees"
    )
    options = parser.parse_args()
    if os.geteuid() or shutil.which("debootstrap") is None:
        sys.exit("This needs root and debootstrap.")
    options.folder.mkdir(parents=True, exist_ok=True)
    values = [dict(value.split("=", 1) for value in given) for given in (options.build_arg, options.env)]
    rehearsal = Rehearsal(options.folder.resolve(), values[0], values[1], options.give)
    container = Container(rehearsal, options.target, options.folder.resolve() / "volumes")
    print(subprocess.run(["du", "-sh", container.root], capture_output=True, text=True).stdout.strip())
    print("user", container.check("id"))
    tools = container.run("/bin/sh", "-c", "command -v pip gcc cc make git").stdout
    written = container.run("/bin/sh", "-c", "touch /opt/occam/x 2>&- && echo its root can be written to").stdout
    if tools or written:
        raise SystemExit(f"of the last stage: {tools}{written}")
    # As KubeRay starts nodes, from a login shell, and its autoscaler beside the head.
    print(container.check("/bin/bash", "-lc", "ray --version && command -v serve occam"))
    container.check("/bin/bash", "-lc", "ray kuberay-autoscaler --help && occam exporter --help")
    if options.target == "cpu":
        ask(container, rehearsal, options.target)
    print("done")


if __name__ == "__main__":
    main()

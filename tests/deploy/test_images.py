"""deploy/Dockerfile and deploy/compose.yaml, judged as they stand; `make rehearse` goes further."""

import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.dockerfile import is_ignored, line_of, pairs, stages
from tests.deploy.manifests import ROOT

DOCKERFILE, IGNORE, COMPOSE = ROOT / "deploy" / "Dockerfile", ROOT / ".dockerignore", ROOT / "deploy" / "compose.yaml"
TARGETS = ("cpu", "gpu")
REHEARSED = {"ARG", "ENV", "WORKDIR", "COPY", "RUN"}
"""Instructions that tests/deploy/rehearse.py follows, beside those that say how the image is run."""
RUNNING = {"LABEL", "USER", "EXPOSE", "STOPSIGNAL", "HEALTHCHECK", "ENTRYPOINT", "CMD"}


def _hadolint() -> str | None:
    beside = Path(sys.executable).parent / "hadolint"
    return str(beside) if beside.exists() else shutil.which("hadolint")


@pytest.mark.skipif(_hadolint() is None, reason="hadolint is not installed")
def test_the_linter_has_nothing_to_say(tmp_path: Path) -> None:
    linted = subprocess.run([str(_hadolint()), DOCKERFILE], capture_output=True, text=True, check=False)
    assert (linted.returncode, linted.stdout) == (0, "")
    broken = tmp_path / "Dockerfile"
    broken.write_text(re.sub("^# hadolint ignore.*\n", "", DOCKERFILE.read_text(), flags=re.MULTILINE))
    assert subprocess.run([str(_hadolint()), broken], capture_output=True, check=False).returncode == 1


def test_every_instruction_is_one_that_the_rehearsal_follows() -> None:
    assert {step.name for stage in stages(DOCKERFILE) for step in stage.instructions} == REHEARSED | RUNNING


def test_what_is_copied_is_there_and_not_ignored() -> None:
    sources = {
        source
        for stage in stages(DOCKERFILE)
        for step in stage.instructions
        if step.name == "COPY" and step.flag("from") is None
        for source in step.words[:-1]
    }
    assert {"occam", "pipelines", "services", "pyproject.toml", "constraints.txt"} <= sources
    assert [source for source in sources if not (ROOT / source).exists() or is_ignored(IGNORE, source)] == []


@pytest.mark.parametrize(
    ("path", "ignored"),
    [
        ("services/app.py", False),
        ("occam/models/tiny/llava/config.json", False),
        ("services/__pycache__/app.pyc", True),
        (".git/config", True),
        ("deploy/.env", True),
        ("tests/conftest.py", True),
        (".venv/bin/python", True),
        ("runs/clip.mp4", True),
    ],
)
def test_an_image_sees_what_it_is_made_of_and_no_more(path: str, ignored: bool) -> None:
    assert is_ignored(IGNORE, path) is ignored


@pytest.mark.parametrize("target", TARGETS)
def test_an_image_runs_as_nobody_in_particular_and_says_how_it_is(target: str) -> None:
    line = line_of(stages(DOCKERFILE), target)
    assert re.fullmatch(r"debian:\d+\.\d+-slim", line[0].base)
    last = {step.name: step for stage in line for step in stage.instructions}
    assert re.fullmatch(r"[1-9]\d+:[1-9]\d+", last["USER"].rest)
    assert {"HEALTHCHECK", "STOPSIGNAL", "LABEL", "ENTRYPOINT", "CMD"} <= last.keys()
    run = " ".join(step.rest for stage in line for step in stage.instructions if step.name == "RUN")
    assert not re.search(r"\b(pip|gcc|g\+\+|build-essential|python3-dev|git|curl|wget)\b", run)


def test_versions_are_those_of_the_package_and_the_manifests() -> None:
    version = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version
    (said,) = [
        pairs(step.rest)["VERSION"]
        for stage in stages(DOCKERFILE)
        for step in stage.instructions
        if step.name == "ARG" and "VERSION" in step.rest
    ]
    ray = re.search(r"^ray==(.+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert ray
    assert f"rayVersion: {ray.group(1)}\n" in (ROOT / "k8s/base/ray/rayservice.yaml").read_text()
    tagged = [ROOT / "k8s" / "overlays" / name / "kustomization.yaml" for name in ("dev", "prod-gpu", "calibrate")]
    tags = re.findall(r"occam-\w+(?:, newTag: |:)([\d.]+)", "".join(p.read_text() for p in [*tagged, COMPOSE]))
    assert {version.group(1)} == {said} == set(tags)


Compose = dict[str, Any]


def _compose() -> Compose:
    compose: Compose = yaml.safe_load(COMPOSE.read_text())
    return compose


def _broken(compose: Compose) -> Iterator[str]:
    for name, service in compose["services"].items():
        yield from (f"{name} {said}" for said in _broken_of(service))
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            if not (source in compose["volumes"] or (source.startswith(".") and volume.endswith(":ro"))):
                yield f"{name} writes to {source}"


def _broken_of(service: Compose) -> Iterator[str]:
    limits = service.get("deploy", {}).get("resources", {}).get("limits", {})
    yield from (f"has no limit of {limit}" for limit in ("cpus", "memory", "pids") if limit not in limits)
    if not re.search(r":v?\d+\.\d+", service["image"]):
        yield "is not pinned"
    if "healthcheck" not in service and "build" not in service:
        yield "has no health check"
    if service.get("cap_drop") != ["ALL"] or service.get("security_opt") != ["no-new-privileges:true"]:
        yield "has privileges"
    if not service.get("read_only") or service.get("privileged") or "network_mode" in service:
        yield "is not shut in"
    if service.get("user", "1").split(":")[0] == "0":
        yield "is root"
    yield from ("listens beyond this machine" for port in service.get("ports", []) if not port.startswith("127.0.0.1:"))
    for variable, value in service["environment"].items() if "environment" in service else ():
        if re.search("PASSWORD|AUTH", variable) and not re.fullmatch(r"\$\{\w+:\?.+\}", value):
            yield f"has a default {variable}"
        if re.search(r"://[^$@]*:[^$@]+@", value):
            yield f"has a password in {variable}"


def test_the_services_of_compose_keep_to_the_policy() -> None:
    assert list(_broken(_compose())) == []


@pytest.mark.parametrize(
    ("said", "mutate"),
    [
        ("has no limit of memory", lambda s: s["deploy"]["resources"]["limits"].pop("memory")),
        ("is not pinned", lambda s: s.update(image="redis:latest")),
        ("has no health check", lambda s: s.pop("healthcheck")),
        ("has privileges", lambda s: s.pop("cap_drop")),
        ("has privileges", lambda s: s.update(security_opt=[])),
        ("is not shut in", lambda s: s.pop("read_only")),
        ("is not shut in", lambda s: s.update(privileged=True)),
        ("is root", lambda s: s.update(user="0:0")),
        ("listens beyond this machine", lambda s: s.update(ports=["6379:6379"])),
        ("has a default REDISCLI_AUTH", lambda s: s["environment"].update(REDISCLI_AUTH="hunter2")),
        ("has a default REDISCLI_AUTH", lambda s: s["environment"].update(REDISCLI_AUTH="${REDIS_PASSWORD:-hunter2}")),
        ("has a password in URL", lambda s: s["environment"].update(URL="redis://:hunter2@redis-kv")),
        ("writes to ..", lambda s: s["volumes"].append("..:/repository")),
    ],
)
def test_each_rule_of_compose_can_be_broken(said: str, mutate: Callable[[Compose], object]) -> None:
    compose = _compose()
    # Anchors share what is below them, so the one that is broken is written out.
    compose["services"]["redis-state"] = yaml.safe_load(yaml.safe_dump(compose["services"]["redis-state"]))
    mutate(compose["services"]["redis-state"])
    assert f"redis-state {said}" in set(_broken(compose))


def test_what_compose_mounts_is_there() -> None:
    mounted = [v.split(":")[0] for s in _compose()["services"].values() for v in s.get("volumes", []) if v[0] == "."]
    assert len(mounted) == 7
    assert [path for path in mounted if not (COMPOSE.parent / path).exists()] == []


def test_the_example_names_every_variable_and_no_value() -> None:
    wanted = set(re.findall(r"\$\{(\w+)", COMPOSE.read_text())) - {"OCCAM_MODELS"}
    example = (ROOT / "deploy" / "env.example").read_text()
    assert set(re.findall(r"^(\w+)=$", example, re.MULTILINE)) == wanted
    assert not re.search(r"^\w+=.", example, re.MULTILINE)

"""Rendered manifests, and the pods in them, wherever they are."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
OVERLAYS = ("dev", "prod-gpu", "calibrate")
Document = dict[str, Any]


def kubectl() -> str | None:
    """kubectl, which has kustomize inside: of the environment's wheel, else on PATH."""
    beside = Path(sys.executable).parent / "kubectl"
    return str(beside) if beside.exists() else shutil.which("kubectl")


@cache
def _rendered(overlay: str) -> str:
    command = [str(kubectl()), "kustomize", str(ROOT / "k8s" / "overlays" / overlay)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def rendered(overlay: str) -> list[Document]:
    """What an overlay comes to, as fresh data."""
    return list(yaml.safe_load_all(_rendered(overlay)))


def only(documents: list[Document], kind: str, name: str | None = None) -> Document:
    """The one document of a kind (and name)."""
    (found,) = [d for d in documents if d["kind"] == kind and name in (None, d["metadata"]["name"])]
    return found


@dataclass(frozen=True)
class Pod:
    """A pod template, and where it stands; `ends` if its containers are meant to."""

    where: str
    template: Document
    ends: bool = False

    @property
    def spec(self) -> Document:
        """Its spec."""
        spec: Document = self.template["spec"]
        return spec

    @property
    def labels(self) -> dict[str, str]:
        """Its labels."""
        labels: dict[str, str] = self.template["metadata"]["labels"]
        return labels

    @property
    def containers(self) -> list[Document]:
        """All its containers, those that are started before the others behind them."""
        return [*self.spec["containers"], *self.spec.get("initContainers", [])]


def pods(documents: list[Document]) -> Iterator[Pod]:
    """Every pod template of the documents."""
    for document in documents:
        where = f"{document['kind']} {document['metadata']['name']}"
        if document["kind"] == "RayService":
            cluster = document["spec"]["rayClusterConfig"]
            yield Pod(f"{where} head", cluster["headGroupSpec"]["template"])
            for group in cluster["workerGroupSpecs"]:
                yield Pod(f"{where} {group['groupName']}", group["template"])
        elif document["kind"] in ("Deployment", "StatefulSet", "DaemonSet", "Job"):
            yield Pod(where, document["spec"]["template"], ends=document["kind"] == "Job")
        elif document["kind"] in ("Pod", "CronJob", "ReplicaSet", "RayCluster", "RayJob"):
            raise AssertionError(f"{where}: the policy does not know where its pods are")


def selects(selector: Document, labels: dict[str, str]) -> bool:
    """Whether a selector, of the forms that are used here, takes a pod (or namespace) of these labels."""
    assert set(selector) <= {"matchLabels", "matchExpressions"}, selector
    expressions = selector.get("matchExpressions", [])
    assert all(expression["operator"] == "In" for expression in expressions)
    return selector.get("matchLabels", {}).items() <= labels.items() and all(
        labels.get(expression["key"]) in expression["values"] for expression in expressions
    )

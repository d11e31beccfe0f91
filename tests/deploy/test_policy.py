"""The policy holds for every overlay, and each of its rules can be broken."""

from collections.abc import Callable

import pytest

from occam.errors import InvalidInput
from services.settings import Settings
from tests.deploy.manifests import OVERLAYS, Document, Pod, kubectl, only, pods, rendered
from tests.deploy.policy import broken

pytestmark = pytest.mark.skipif(kubectl() is None, reason="kubectl is not installed")


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_policy_holds(overlay: str) -> None:
    assert broken(rendered(overlay)) == []


Mutation = Callable[[list[Document]], object]


def _head(documents: list[Document]) -> Pod:
    return next(pod for pod in pods(documents) if "head" in pod.where)


def _ray(documents: list[Document]) -> Document:
    return _head(documents).containers[0]


def _cluster(documents: list[Document]) -> Document:
    cluster: Document = only(documents, "RayService")["spec"]["rayClusterConfig"]
    return cluster


def _state(documents: list[Document]) -> Document:
    container: Document = only(documents, "StatefulSet", "redis-state")["spec"]["template"]["spec"]["containers"][0]
    return container


def _plain(variable: str) -> Mutation:
    def mutate(documents: list[Document]) -> None:
        place = next(entry for entry in _ray(documents)["env"] if entry["name"] == variable)
        place.pop("valueFrom")
        place["value"] = "hunter2"

    return mutate


def _argument(name: str) -> Mutation:
    def mutate(documents: list[Document]) -> None:
        service = only(documents, "RayService")["spec"]
        service["serveConfigV2"] = service["serveConfigV2"].replace("dtype:", f"{name}:")

    return mutate


def _secret(documents: list[Document]) -> None:
    documents.append({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "occam", "namespace": "occam"}})


def _link(documents: list[Document]) -> None:
    variable = next(entry for entry in _ray(documents)["env"] if entry["name"] == "OCCAM_KV_URL")
    variable["value"] = "redis://:hunter2@redis-kv:6379/0"


MUTATIONS: list[tuple[str, Mutation]] = [
    ("no_root", lambda d: _head(d).spec["securityContext"].pop("runAsNonRoot")),
    ("no_root", lambda d: _head(d).spec["securityContext"].update(runAsUser=0)),
    ("no_root", lambda d: _ray(d)["securityContext"].update(runAsUser=0)),
    ("no_privilege", lambda d: _ray(d)["securityContext"].update(privileged=True)),
    ("no_privilege", lambda d: _state(d)["securityContext"].pop("allowPrivilegeEscalation")),
    ("no_privilege", lambda d: _ray(d)["securityContext"]["capabilities"].update(add=["SYS_ADMIN"])),
    ("no_privilege", lambda d: _state(d)["securityContext"].pop("capabilities")),
    ("read_only_root", lambda d: _ray(d)["securityContext"].pop("readOnlyRootFilesystem")),
    ("seccomp", lambda d: _head(d).spec["securityContext"].update(seccompProfile={"type": "Unconfined"})),
    ("no_host", lambda d: _head(d).spec.update(hostNetwork=True)),
    ("no_host", lambda d: _ray(d)["ports"][0].update(hostPort=6379)),
    ("volumes", lambda d: _head(d).spec["volumes"].append({"name": "node", "hostPath": {"path": "/"}})),
    ("volumes", lambda d: _head(d).spec["volumes"].append({"name": "scratch", "emptyDir": {}})),
    ("no_token", lambda d: _head(d).spec.pop("automountServiceAccountToken")),
    ("no_token", lambda d: _head(d).spec.pop("serviceAccountName")),
    ("no_token", lambda d: _ray(d)["volumeMounts"].append({"name": "kubernetes", "mountPath": "/token"})),
    ("no_service_links", lambda d: _head(d).spec.pop("enableServiceLinks")),
    ("pinned", lambda d: _ray(d).update(image="registry.example.com:5000/occam-cpu")),
    ("pinned", lambda d: _ray(d).update(image="occam-cpu:latest")),
    ("limits", lambda d: _ray(d)["resources"]["limits"].pop("memory")),
    ("limits", lambda d: _state(d)["resources"]["requests"].pop("cpu")),
    ("limits", lambda d: _state(d)["resources"]["requests"].update(memory="1Mi")),
    ("probes", lambda d: _ray(d).pop("livenessProbe")),
    ("probes", lambda d: _ray(d).pop("readinessProbe")),
    ("probes", lambda d: _head(d).containers[1].pop("livenessProbe")),
    ("probes", lambda d: _head(d).containers[1].update(readinessProbe=_head(d).containers[1]["livenessProbe"])),
    ("probes", lambda d: _head(d).containers[1].update(startupProbe=_head(d).containers[1]["livenessProbe"])),
    ("sidecars", lambda d: _head(d).containers[1].pop("restartPolicy")),
    ("secrets_referenced", _plain("REDIS_STATE_PASSWORD")),
    ("secrets_referenced", _plain("OCCAM_API_KEYS")),
    ("secrets_referenced", _link),
    ("no_secrets", _secret),
    ("no_secrets", _argument("kv_url")),
    ("no_secrets", _argument("api_keys")),
    ("no_secrets", lambda d: _cluster(d)["gcsFaultToleranceOptions"].update(redisPassword={"value": "hunter2"})),
    ("no_secrets", lambda d: next(x for x in d if x["kind"] == "ConfigMap")["data"].update(x="requirepass hunter2")),
    ("namespaced", lambda d: only(d, "RayService")["metadata"].pop("namespace")),
    ("namespaced", lambda d: only(d, "Namespace")["metadata"]["labels"].clear()),
    ("selecting", lambda d: only(d, "PodDisruptionBudget", "gpu")["spec"]["selector"]["matchLabels"].update(a="b")),
    ("selecting", lambda d: only(d, "PodMonitor")["spec"]["selector"]["matchLabels"].update(a="b")),
    ("selecting", lambda d: only(d, "Service", "redis-kv")["spec"]["selector"].update(a="b")),
    ("kuberay", lambda d: _cluster(d).pop("autoscalerOptions")),
    ("kuberay", lambda d: _cluster(d).pop("authOptions")),
    ("kuberay", lambda d: only(d, "RayService")["spec"]["upgradeStrategy"].update(type="None")),
    ("kuberay", lambda d: _cluster(d)["gcsFaultToleranceOptions"].update(redisAddress="redis-kv:6379")),
    ("budgets", lambda d: only(d, "PodDisruptionBudget", "gpu")["spec"].update(minAvailable="50%")),
    ("budgets", lambda d: only(d, "PodDisruptionBudget", "gpu")["spec"].pop("unhealthyPodEvictionPolicy")),
    ("budgets", lambda d: _cluster(d)["workerGroupSpecs"][1].update(minReplicas=1)),
]


@pytest.mark.parametrize(("rule", "mutate"), MUTATIONS, ids=[f"{n}-{rule}" for n, (rule, _) in enumerate(MUTATIONS)])
def test_each_rule_can_be_broken(rule: str, mutate: Mutation) -> None:
    documents = rendered("prod-gpu")
    mutate(documents)
    found = broken(documents)
    assert found
    assert {said.split(":")[0] for said in found} == {rule}


def test_variables_of_services_would_stop_the_start() -> None:
    with pytest.raises(InvalidInput, match="head_svc"):
        Settings.load({"OCCAM_HEAD_SVC_SERVICE_HOST": "10.96.0.7"})

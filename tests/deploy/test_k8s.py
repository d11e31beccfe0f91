"""The manifests: what kustomize makes of them is valid, keeps to the policy, and each rule of the policy can be broken."""

import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from redis import Redis
from redis.exceptions import BusyLoadingError

from services.private_redis import find_server
from tests.deploy.kuberay import SPECS
from tests.deploy.manifests import OVERLAYS, ROOT, Document, Pod, kubectl, only, pods, rendered
from tests.deploy.policy import broken
from tests.deploy.reach import End, may_connect

pytestmark = pytest.mark.skipif(kubectl() is None, reason="kubectl is not installed")
CRD = ROOT.parent / "shared" / "reference" / "ray.io_rayservices.crd.yaml"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_kubernetes_knows_is_valid(overlay: str) -> None:
    validator = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    for document in rendered(overlay):
        if document["kind"] not in SPECS:
            validator.validate(document, validator.latest_version(), strict=True)
    for pod in pods(rendered(overlay)):
        template = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "x"}, "template": pod.template}
        validator.validate(template, validator.latest_version(), strict=True)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_resources_of_kuberay_and_prometheus_have_only_fields_that_are_known(overlay: str) -> None:
    for document in rendered(overlay):
        if document["kind"] in SPECS:
            jsonschema.validate(document["spec"], SPECS[document["kind"]])


@pytest.mark.skipif(not CRD.exists(), reason="KubeRay's own schema is not here")
@pytest.mark.parametrize("overlay", ["dev", "prod-gpu"])
def test_kuberay_itself_would_take_it(overlay: str) -> None:
    versions = yaml.safe_load(CRD.read_text())["spec"]["versions"]
    schema = next(v["schema"]["openAPIV3Schema"] for v in versions if v["name"] == "v1")
    _close(schema)
    jsonschema.validate(only(rendered(overlay), "RayService")["spec"], schema["properties"]["spec"])


def _close(schema: Any) -> None:
    """Refuse fields that the schema does not name: a cluster would drop them without a word."""
    if isinstance(schema, dict):
        if schema.get("type") == "object" and "properties" in schema:
            schema.setdefault("additionalProperties", False)
        for below in schema.values():
            _close(below)


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
    ("probes", lambda d: _head(d).containers[1].pop("readinessProbe")),
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
    ("budgets", lambda d: only(d, "PodDisruptionBudget", "cpu")["spec"].update(minAvailable="50%")),
]


@pytest.mark.parametrize(("rule", "mutate"), MUTATIONS, ids=[f"{n}-{rule}" for n, (rule, _) in enumerate(MUTATIONS)])
def test_each_rule_can_be_broken(rule: str, mutate: Mutation) -> None:
    documents = rendered("prod-gpu")
    mutate(documents)
    found = broken(documents)
    assert found
    assert {said.split(":")[0] for said in found} == {rule}


RAY = {"app.kubernetes.io/component": "ray"}
HEAD, CPU, GPU = (
    End(RAY | {"occam-group": group} | ({} if group == "head" else {"occam-egress": "public"}))
    for group in ("head", "cpu", "gpu")
)
KV, STATE, GCS, JOB = (
    End({"app.kubernetes.io/component": name} | ({"occam-egress": "public"} if name == "calibrate" else {}))
    for name in ("redis-kv", "redis-state", "redis-gcs", "calibrate")
)
STRANGER = End({"app": "stranger"}, namespace="default")
NEIGHBOUR = End({"app": "neighbour"})
PROXY = End({}, namespace="ingress-nginx")
PROMETHEUS = End({"app.kubernetes.io/name": "prometheus"}, namespace="monitoring")
OPERATOR = End({"app.kubernetes.io/name": "kuberay-operator"}, namespace="anywhere")
DNS = End({"k8s-app": "kube-dns"}, namespace="kube-system")
PUBLIC, PUBLIC_6 = End(address="93.184.215.14"), End(address="2606:2800:21f:cb07::1")
PRIVATE = ("10.0.0.1", "172.31.255.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "127.0.0.1", "224.0.0.1",
           "0.0.0.1", "198.18.0.1", "255.255.255.255", "fd00:ec2::254", "fe80::1", "::1", "::ffff:169.254.169.254",
           "64:ff9b::a9fe:a9fe", "2002:a9fe:a9fe::1", "2001:0:1::1", "ff02::1")  # fmt: skip


def test_the_labels_of_pods_are_those_that_the_test_of_reach_has() -> None:
    wanted = {tuple(sorted(end.labels.items())) for end in (HEAD, CPU, GPU, KV, STATE, GCS)}
    found = {
        tuple(sorted((key, value) for key, value in pod.labels.items() if not key.endswith("part-of")))
        for pod in pods(rendered("prod-gpu"))
    }
    assert found == wanted


@pytest.mark.parametrize("node", [HEAD, CPU, GPU], ids=["head", "cpu", "gpu"])
def test_nodes_of_ray_reach_each_other_and_redis_and_little_else(node: End) -> None:
    policies = rendered("prod-gpu")
    for other in (HEAD, CPU, GPU):
        assert may_connect(policies, node, other, 10_001)
    for redis in (KV, STATE, GCS):
        assert may_connect(policies, node, redis, 6379)
        assert not may_connect(policies, node, redis, 22)
        assert not may_connect(policies, redis, node, 8000)
        assert not may_connect(policies, redis, PUBLIC, 443)
        assert not any(may_connect(policies, who, redis, 6379) for who in (STRANGER, NEIGHBOUR, PROXY, PROMETHEUS, JOB))
    assert may_connect(policies, node, DNS, 53, "UDP")
    assert not may_connect(policies, node, NEIGHBOUR, 80)
    assert may_connect(policies, PROXY, node, 8000)
    assert may_connect(policies, PROMETHEUS, node, 9400)
    assert may_connect(policies, OPERATOR, node, 8265)
    for who, port in ((STRANGER, 8000), (STRANGER, 8265), (PROXY, 8265), (PROMETHEUS, 8265), (OPERATOR, 6379)):
        assert not may_connect(policies, who, node, port)


@pytest.mark.parametrize("fetching", [CPU, GPU, JOB], ids=["cpu", "gpu", "job"])
def test_what_fetches_reaches_the_public_network_and_no_address_of_anybodys_own(fetching: End) -> None:
    policies = rendered("prod-gpu")
    assert may_connect(policies, fetching, PUBLIC, 443)
    assert may_connect(policies, fetching, PUBLIC_6, 80)
    assert not may_connect(policies, fetching, PUBLIC, 25)
    assert [a for a in PRIVATE for port in (80, 443) if may_connect(policies, fetching, End(address=a), port)] == []


def test_only_the_head_reaches_kubernetes() -> None:
    policies = rendered("prod-gpu")
    server = End(address="10.96.0.1")
    assert [may_connect(policies, node, server, 443) for node in (HEAD, CPU, GPU, KV, STATE)] == [True] + 4 * [False]
    assert not may_connect(policies, HEAD, End(address="169.254.169.254"), 80)


@pytest.mark.parametrize(
    ("kind", "name", "policy", "appendonly", "memory"),
    [
        ("Deployment", "redis-kv", "allkeys-lru", "no", 8 << 30),
        ("StatefulSet", "redis-state", "noeviction", "yes", 1 << 30),
        ("StatefulSet", "redis-gcs", "noeviction", "yes", 1 << 30),
    ],
)
def test_each_redis_is_what_it_is_said_to_be(
    kind: str, name: str, policy: str, appendonly: str, memory: int, tmp_path: Path
) -> None:
    with _redis(kind, name, tmp_path) as (client, command_line):
        set_to = client.config_get()
        assert set_to["maxmemory-policy"] == policy
        assert set_to["appendonly"] == appendonly
        assert int(set_to["maxmemory"]) == pytest.approx(memory, rel=1e-6)
        assert b"a-password" not in command_line


@contextmanager
def _redis(kind: str, name: str, folder: Path) -> "Iterator[tuple[Redis, bytes]]":
    """A real server by the command that stands in the pod, its data in `folder / "data"`; and its command line."""
    documents = rendered("prod-gpu")
    spec = only(documents, kind, name)["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    config = only(documents, "ConfigMap", spec["volumes"][0]["configMap"]["name"])["data"]["redis.conf"]
    (folder / "data").mkdir(exist_ok=True)
    config = re.sub("^dir .*", f"dir {folder}/data", config, flags=re.MULTILINE)
    (folder / "redis.conf").write_text(f"{config}\nport 0\nunixsocket {folder}/redis.sock\n")
    shell, flag, script = container["command"]
    script = script.replace("/etc/redis/redis.conf", f"{folder}/redis.conf").replace("redis-server", str(find_server()))
    size, unit = container["resources"]["limits"]["memory"][:-2], container["resources"]["limits"]["memory"][-2:]
    memory = int(size) << {"Mi": 20, "Gi": 30}[unit]
    environment = {"PATH": os.environ["PATH"], "REDISCLI_AUTH": "a-password", "MEMORY": str(memory)}
    server = subprocess.Popen([shell, flag, script], env=environment, stdout=subprocess.DEVNULL)
    try:
        while not (folder / "redis.sock").exists():
            assert server.poll() is None
        with Redis(unix_socket_path=f"{folder}/redis.sock", password="a-password", decode_responses=True) as client:
            while _loading(client):
                time.sleep(0.05)
            yield client, Path(f"/proc/{server.pid}/cmdline").read_bytes()
    finally:
        server.kill()
        server.wait()


def _loading(client: Redis) -> bool:
    try:
        return not client.ping()
    except BusyLoadingError:
        return True


def test_state_survives_a_crash_and_comes_back_from_a_backup(tmp_path: Path) -> None:
    """As docs/operations.md says: an archive of the running server's folder, and a server on what is in it."""
    crashed, restored = tmp_path / "crashed", tmp_path / "restored"
    crashed.mkdir()
    with _redis("StatefulSet", "redis-state", crashed) as (client, _):
        client.config_set("auto-aof-rewrite-percentage", 0)
        for number in range(1000):
            client.set(f"session:{number}", "x" * 1000, ex=3600)
        time.sleep(1.5)  # the file is synced every second
        subprocess.run(["tar", "-C", crashed / "data", "-cf", tmp_path / "state.tar", "."], check=True)
        client.set("afterwards", "1")
        time.sleep(1.5)
    (crashed / "redis.sock").unlink()
    with _redis("StatefulSet", "redis-state", crashed) as (client, _):
        assert client.dbsize() == 1001
    (restored / "data").mkdir(parents=True)
    subprocess.run(["tar", "-C", restored / "data", "-xf", tmp_path / "state.tar"], check=True)
    with _redis("StatefulSet", "redis-state", restored) as (client, _):
        assert client.dbsize() == 1000
        assert 0 < client.ttl("session:7") <= 3600


def test_models_are_where_the_job_puts_them() -> None:
    job = only(rendered("calibrate"), "Job")["spec"]["template"]["spec"]
    (served,) = yaml.safe_load(only(rendered("prod-gpu"), "RayService")["spec"]["serveConfigV2"])["applications"]
    assert job["containers"][0]["args"] == ["calibrate", served["args"]["models"]]
    gpu = next(pod.spec for pod in pods(rendered("prod-gpu")) if pod.where.endswith("gpu"))
    for spec in (job, gpu):
        (claim,) = [v["persistentVolumeClaim"]["claimName"] for v in spec["volumes"] if "persistentVolumeClaim" in v]
        mounts = {mount["name"]: mount["mountPath"] for mount in spec["containers"][0]["volumeMounts"]}
        assert (claim, mounts["models"]) == ("model-cache", "/models")

"""The manifests: what kustomize makes of them is valid, and lets reach each other who must and nobody else."""

from typing import Any

import jsonschema
import pytest
import yaml

from services.settings import Settings
from tests.deploy.kuberay import SPECS
from tests.deploy.manifests import OVERLAYS, ROOT, kubectl, only, pods, rendered
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
OPERATOR = End({"app.kubernetes.io/name": "kuberay-operator"}, namespace="kuberay")
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


def test_models_are_where_the_job_puts_them() -> None:
    job = only(rendered("calibrate"), "Job")["spec"]["template"]["spec"]
    (served,) = yaml.safe_load(only(rendered("prod-gpu"), "RayService")["spec"]["serveConfigV2"])["applications"]
    assert job["containers"][0]["args"] == ["calibrate", served["args"]["models"]]
    gpu = next(pod.spec for pod in pods(rendered("prod-gpu")) if pod.where.endswith("gpu"))
    for spec in (job, gpu):
        (claim,) = [v["persistentVolumeClaim"]["claimName"] for v in spec["volumes"] if "persistentVolumeClaim" in v]
        mounts = {mount["name"]: mount["mountPath"] for mount in spec["containers"][0]["volumeMounts"]}
        assert (claim, mounts["models"]) == ("model-cache", "/models")


def test_pods_and_clusters_that_go_leave_time_for_what_has_begun() -> None:
    deadline_s = Settings().deadline_s
    service = only(rendered("prod-gpu"), "RayService")["spec"]
    assert service["rayClusterDeletionDelaySeconds"] > deadline_s
    for group in service["rayClusterConfig"]["workerGroupSpecs"]:
        spec = group["template"]["spec"]
        [drain_s] = [
            float(variable["value"])
            for variable in spec["containers"][0]["env"]
            if variable["name"] == "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"
        ]
        assert spec["terminationGracePeriodSeconds"] > drain_s
        assert drain_s > 2 * deadline_s, "a successor starts while the first half runs; answers end in the second"

"""What every manifest must keep to. A rule yields a sentence for each place that breaks it, after its own name."""

import re
from collections.abc import Callable, Iterator

import yaml

from tests.deploy.manifests import Document, Pod, pods, selects

_VOLUMES = {"configMap", "emptyDir", "persistentVolumeClaim", "projected", "secret"}
_PROBES = ("startupProbe", "readinessProbe", "livenessProbe")
_HOLDING = {"startupProbe", "readinessProbe"}
_SECRET_NAME = re.compile(r"PASSWORD|_KEYS?$|TOKEN|SECRET|AUTH$", re.IGNORECASE)
_PASSWORD_IN_URL = re.compile(r"://[^/\s@]*:(?!\$\(\w+\)@)[^/\s@]+@")
_SELECTED = {"Service", "PodDisruptionBudget", "NetworkPolicy", "PodMonitor"}


def broken(documents: list[Document]) -> list[str]:
    """Everything that breaks a rule, as `rule: where and what`."""
    found = [f"{rule.__name__}: {said}" for rule in _DOCUMENT_RULES for said in rule(documents)]
    for pod in pods(documents):
        found += [f"{rule.__name__}: {pod.where} {said}" for rule in _POD_RULES for said in rule(pod)]
    return found


def no_root(pod: Pod) -> Iterator[str]:
    """Pods run as a number that is not 0."""
    security = pod.spec.get("securityContext", {})
    if security.get("runAsNonRoot") is not True or not security.get("runAsUser"):
        yield "may run as root"
    for container in pod.containers:
        own = container.get("securityContext", {})
        if own.get("runAsNonRoot", True) is not True or own.get("runAsUser", 1) == 0:
            yield f"{container['name']} may run as root"


def no_privilege(pod: Pod) -> Iterator[str]:
    """Containers can gain nothing."""
    for container in pod.containers:
        yield from (f"{container['name']} {said}" for said in _privileges(container.get("securityContext", {})))


def _privileges(security: Document) -> Iterator[str]:
    if security.get("privileged") or security.get("allowPrivilegeEscalation") is not False:
        yield "may gain privileges"
    if security.get("capabilities") != {"drop": ["ALL"]}:
        yield "has capabilities"


def read_only_root(pod: Pod) -> Iterator[str]:
    """Only volumes can be written to."""
    for container in pod.containers:
        if container.get("securityContext", {}).get("readOnlyRootFilesystem") is not True:
            yield f"{container['name']} writes into its image"


def seccomp(pod: Pod) -> Iterator[str]:
    """System calls are those of the runtime's profile."""
    if pod.spec.get("securityContext", {}).get("seccompProfile") != {"type": "RuntimeDefault"}:
        yield "is not under RuntimeDefault"


def no_host(pod: Pod) -> Iterator[str]:
    """Nothing of the node is shared."""
    yield from (name for name in ("hostNetwork", "hostPID", "hostIPC", "hostUsers") if pod.spec.get(name))
    for container in pod.containers:
        yield from (f"{container['name']} hostPort" for port in container.get("ports", []) if "hostPort" in port)


def volumes(pod: Pod) -> Iterator[str]:
    """Volumes are of harmless kinds, and scratch ones are bounded."""
    for volume in pod.spec.get("volumes", []):
        kind = next(iter(set(volume) - {"name"}))
        if kind not in _VOLUMES:
            yield f"{volume['name']} is a {kind}"
        if kind == "emptyDir" and "sizeLimit" not in volume[kind]:
            yield f"{volume['name']} is not bounded"


def no_token(pod: Pod) -> Iterator[str]:
    """Kubernetes is not for pods to speak with; what must, mounts a token by itself, for a container alone."""
    if pod.spec.get("automountServiceAccountToken") is not False or not pod.spec.get("serviceAccountName"):
        yield "has a token"
    tokens = {v["name"] for v in pod.spec.get("volumes", []) if "serviceAccountToken" in str(v)}
    for container in pod.containers:
        if tokens & {mount["name"] for mount in container.get("volumeMounts", [])}:
            yield f"{container['name']} has a token"


def no_service_links(pod: Pod) -> Iterator[str]:
    """No variables of Services: those of KubeRay's are named like settings."""
    if pod.spec.get("enableServiceLinks") is not False:
        yield "has variables of Services"


def pinned(pod: Pod) -> Iterator[str]:
    """Images have a version."""
    for container in pod.containers:
        if not re.search(r"(:[\w.-]*\d[\w.-]*|@sha256:[0-9a-f]{64})$", container["image"]):
            yield f"{container['name']} runs {container['image']}"


def limits(pod: Pod) -> Iterator[str]:
    """Containers say what they need and how much they may take; memory is not promised twice."""
    for container in pod.containers:
        yield from (f"{container['name']} {said}" for said in _resources(container.get("resources", {})))


def _resources(resources: Document) -> Iterator[str]:
    wanted, most = resources.get("requests", {}), resources.get("limits", {})
    for name in ("cpu", "memory"):
        if name not in wanted or name not in most:
            yield f"has no request or no limit of {name}"
    if wanted.get("memory") != most.get("memory"):
        yield "may be given memory that is not there"


def sidecars(pod: Pod) -> Iterator[str]:
    """What starts before the others stays beside them, and is started anew."""
    for container in pod.spec.get("initContainers", []):
        if container.get("restartPolicy") != "Always":
            yield f"{container['name']} is started once"


def probes(pod: Pod) -> Iterator[str]:
    """Whoever does not end is watched; what stays beside it is started anew where it hangs, and holds up nobody."""
    if pod.ends:
        return
    for container in pod.spec["containers"]:
        yield from (f"{container['name']} has no {probe}" for probe in _PROBES if probe not in container)
    for sidecar in pod.spec.get("initContainers", []):
        yield from (f"{sidecar['name']} has no {probe}" for probe in {"livenessProbe"} - set(sidecar))
        yield from (f"{sidecar['name']} keeps its pod out by its {probe}" for probe in _HOLDING & set(sidecar))


def secrets_referenced(pod: Pod) -> Iterator[str]:
    """Passwords and keys come from a Secret."""
    for container in pod.containers:
        for variable in container.get("env", []):
            if _SECRET_NAME.search(variable["name"]) and "secretKeyRef" not in variable.get("valueFrom", {}):
                yield f"{container['name']} has {variable['name']} in plain text"
            if _PASSWORD_IN_URL.search(variable.get("value", "")):
                yield f"{container['name']} has a password in {variable['name']}"


def no_secrets(documents: list[Document]) -> Iterator[str]:
    """No manifest holds a secret."""
    for document in documents:
        if document["kind"] == "Secret":
            yield f"Secret {document['metadata']['name']}"
        if document["kind"] == "ConfigMap" and re.search(r"requirepass|password|_key", str(document["data"]), re.I):
            yield f"ConfigMap {document['metadata']['name']}"
        if document["kind"] == "RayService":
            (application,) = yaml.safe_load(document["spec"]["serveConfigV2"])["applications"]
            yield from (f"serveConfigV2 {n}" for n in application["args"] if n.endswith(("_url", "keys", "endpoint")))
            password = document["spec"]["rayClusterConfig"]["gcsFaultToleranceOptions"].get("redisPassword", {})
            if "secretKeyRef" not in password.get("valueFrom", {}):
                yield "gcsFaultToleranceOptions"


def namespaced(documents: list[Document]) -> Iterator[str]:
    """Everything is in the one namespace, which refuses what is not restricted."""
    for document in documents:
        if document["kind"] != "Namespace" and document["metadata"].get("namespace") != "occam":
            yield f"{document['kind']} {document['metadata']['name']} is elsewhere"
        if document["kind"] == "Namespace":
            labels = document["metadata"].get("labels", {})
            if labels.get("pod-security.kubernetes.io/enforce") != "restricted":
                yield "the namespace takes any pod"


def selecting(documents: list[Document]) -> Iterator[str]:
    """Whatever selects pods selects one that is there."""
    labels = [pod.labels for pod in pods(documents)]
    for document in (d for d in documents if d["kind"] in _SELECTED):
        spec = document["spec"]
        selector = spec["podSelector"] if "podSelector" in spec else spec["selector"]
        selector = {"matchLabels": selector} if document["kind"] == "Service" else selector
        if not any(selects(selector, found) for found in labels):
            yield f"{document['kind']} {document['metadata']['name']} selects nothing"


def kuberay(documents: list[Document]) -> Iterator[str]:
    """The autoscaler's container is one like others; Ray's own ports ask for a token; sessions outlive the cluster."""
    for document in (d for d in documents if d["kind"] == "RayService"):
        spec, cluster = document["spec"], document["spec"]["rayClusterConfig"]
        autoscaler = cluster.get("autoscalerOptions", {})
        yield from (f"autoscaler {said}" for said in _privileges(autoscaler.get("securityContext", {})))
        yield from (f"autoscaler {said}" for said in _resources(autoscaler.get("resources", {})))
        if cluster.get("authOptions", {}).get("mode") != "token":
            yield "Ray's ports are open"
        if spec.get("upgradeStrategy", {}).get("type") != "NewCluster":
            yield "an upgrade interrupts the service"
        redis = {"redis-kv", "redis-state"} & {cluster["gcsFaultToleranceOptions"]["redisAddress"].split(":")[0]}
        yield from (f"GCS shares {name}" for name in redis)


def budgets(documents: list[Document]) -> Iterator[str]:
    """Of a custom resource's pods a budget only understands a number that stays; there are more, so that one may go."""
    for document in (d for d in documents if d["kind"] == "PodDisruptionBudget"):
        name, spec = document["metadata"]["name"], document["spec"]
        if not isinstance(spec.get("minAvailable"), int) or "maxUnavailable" in spec:
            yield name
            continue
        for group in (group for group in _groups(documents) if selects(spec["selector"], _labels(group))):
            if group["minReplicas"] <= spec["minAvailable"]:
                yield f"{name} lets no pod of {group['groupName']} go"
            if spec.get("unhealthyPodEvictionPolicy") != "AlwaysAllow":
                yield f"{name} keeps pods of {group['groupName']} that are not ready"


def _groups(documents: list[Document]) -> Iterator[Document]:
    for document in (d for d in documents if d["kind"] == "RayService"):
        yield from document["spec"]["rayClusterConfig"]["workerGroupSpecs"]


def _labels(group: Document) -> dict[str, str]:
    labels: dict[str, str] = group["template"]["metadata"]["labels"]
    return labels


_POD_RULES: tuple[Callable[[Pod], Iterator[str]], ...] = (
    no_root, no_privilege, read_only_root, seccomp, no_host, volumes, no_token, no_service_links, pinned, limits,
    sidecars, probes, secrets_referenced,
)  # fmt: skip
_DOCUMENT_RULES: tuple[Callable[[list[Document]], Iterator[str]], ...] = (
    no_secrets, namespaced, selecting, kuberay, budgets,
)  # fmt: skip

"""Who may open a connection to whom under the NetworkPolicies of rendered manifests.

Source: the Kubernetes API's NetworkPolicySpec; a connection needs the leave of both ends, where policies select them.
"""

import ipaddress
from dataclasses import dataclass, field

from tests.deploy.manifests import Document, selects


@dataclass(frozen=True)
class End:
    """A pod by labels and namespace, or an address outside the cluster."""

    labels: dict[str, str] = field(default_factory=dict)
    namespace: str = "occam"
    address: str = ""


def may_connect(documents: list[Document], source: End, target: End, port: int, protocol: str = "TCP") -> bool:
    """Whether `source` may open a connection to a port of `target`."""
    policies = [document["spec"] for document in documents if document["kind"] == "NetworkPolicy"]
    return _leave(policies, "Egress", source, target, port, protocol) and _leave(
        policies, "Ingress", target, source, port, protocol
    )


def _leave(policies: list[Document], way: str, whose: End, other: End, port: int, protocol: str) -> bool:
    if whose.address or whose.namespace != "occam":
        return True
    there = [p for p in policies if way in p["policyTypes"] and selects(p["podSelector"], whose.labels)]
    peers = "to" if way == "Egress" else "from"
    rules = [rule for policy in there for rule in policy.get(way.lower(), [])]
    return not there or any(
        (peers not in rule or any(_is(peer, other) for peer in rule[peers]))
        and ("ports" not in rule or {"port": port, "protocol": protocol} in rule["ports"])
        for rule in rules
    )


def _is(peer: Document, end: End) -> bool:
    if "ipBlock" in peer:
        if not end.address:
            return False
        address = ipaddress.ip_address(end.address)
        inside = [address in ipaddress.ip_network(net) for net in peer["ipBlock"].get("except", [])]
        return address in ipaddress.ip_network(peer["ipBlock"]["cidr"]) and not any(inside)
    if end.address:
        return False
    namespaced = {"kubernetes.io/metadata.name": end.namespace}
    namespace = (
        selects(peer["namespaceSelector"], namespaced) if "namespaceSelector" in peer else end.namespace == "occam"
    )
    return namespace and selects(peer.get("podSelector", {}), end.labels)

"""The fields of KubeRay's and Prometheus' resources that the manifests use, for machines without their schemas.

Anything else in them is an error: a misspelt field would be dropped by the cluster without a word. Pod templates are
checked as Kubernetes' own.
"""

from typing import Any

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
WHOLE: Schema = {"type": "integer", "minimum": 0}
YES_NO: Schema = {"type": "boolean"}
ANYTHING: Schema = {"type": "object"}


def _of(required: str = "", **properties: Schema) -> Schema:
    return {
        "type": "object",
        "properties": properties,
        "required": required.split(),
        "additionalProperties": False,
    }


def _list_of(item: Schema) -> Schema:
    return {"type": "array", "items": item}


_PARAMETERS: Schema = {"type": "object", "additionalProperties": TEXT}
_SECRET = _of(valueFrom=_of("secretKeyRef", secretKeyRef=_of("name key", name=TEXT, key=TEXT)))
_CLUSTER = _of(
    "rayVersion headGroupSpec workerGroupSpecs",
    rayVersion=TEXT,
    authOptions=_of("mode", mode={"enum": ["disabled", "token"]}),
    gcsFaultToleranceOptions=_of("redisAddress", redisAddress=TEXT, redisPassword=_SECRET),
    enableInTreeAutoscaling=YES_NO,
    autoscalerOptions=_of(
        version={"enum": ["v1", "v2"]},
        upscalingMode={"enum": ["Default", "Aggressive", "Conservative"]},
        idleTimeoutSeconds=WHOLE,
        resources=ANYTHING,
        securityContext=ANYTHING,
        volumeMounts=_list_of(ANYTHING),
    ),
    headGroupSpec=_of("template", rayStartParams=_PARAMETERS, template=ANYTHING),
    workerGroupSpecs=_list_of(
        _of(
            "groupName minReplicas maxReplicas template",
            groupName=TEXT,
            replicas=WHOLE,
            minReplicas=WHOLE,
            maxReplicas=WHOLE,
            rayStartParams=_PARAMETERS,
            template=ANYTHING,
        )
    ),
)
SPECS: dict[str, Schema] = {
    "RayService": _of(
        "serveConfigV2 rayClusterConfig",
        serveConfigV2=TEXT,
        upgradeStrategy=_of("type", type={"enum": ["NewCluster", "None"]}),
        rayClusterDeletionDelaySeconds=WHOLE,
        excludeHeadPodFromServeSvc=YES_NO,
        rayClusterConfig=_CLUSTER,
    ),
    "PodMonitor": _of(
        "selector podMetricsEndpoints",
        jobLabel=TEXT,
        selector=_of("matchLabels", matchLabels=_PARAMETERS),
        podMetricsEndpoints=_list_of(
            _of(
                port=TEXT,
                path=TEXT,
                interval=TEXT,
                relabelings=_list_of(_of(sourceLabels=_list_of(TEXT), regex=TEXT, action=TEXT)),
            )
        ),
    ),
}

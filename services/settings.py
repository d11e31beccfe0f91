"""Every setting of the service, and the only place that reads the environment."""

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml

from occam.config import Dtype, EngineConfig, Quantization, Wire
from occam.errors import InvalidInput
from services.allowances import Allowance, allowances
from services.keys import Keys

PREFIX = "OCCAM_"
FILE_VARIABLE = "OCCAM_CONFIG"
KEY_VARIABLE = "OCCAM_API_KEY"
"""The key that a client of the service sends, which is no setting of the service itself."""

METRICS_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
"""Set for the processes that count: the folder of the launcher's node. The library that counts reads it too."""

_METRICS = "metrics"
_DIRECTORY_VARIABLE = f"{PREFIX}DIRECTORY"
_NO_SETTINGS = (FILE_VARIABLE, KEY_VARIABLE)
_STANDARD_ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"

_MAY_BE_ZERO = frozenset(
    {
        "gpus_per_worker", "max_workers", "target_queued_tokens", "max_queued", "max_images", "video_cache_bytes",
        "tenant_upload_bytes", "batch_views", "kv_memory_bytes", "kv_entry_bytes", "kv_node_bytes", "quota_requests",
        "quota_video_seconds",
    }
)  # fmt: skip

_KUBERNETES = re.compile(PREFIX + r"(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings by name: `max_video_bytes` is `OCCAM_MAX_VIDEO_BYTES`; docs/settings.md says what each is.

    kv_detail, state_detail: what `auto` came to, in words for `/readyz`; log_socket: where the launcher takes lines. It
    fills these in. Replicas find servers in kv_url and state_url and a folder in directory, never `auto` or nothing.
    """

    models: tuple[str, ...] = ("tiny-video-llava",)
    kv_url: str = "auto"
    kv_ttl_s: float = 86_400.0
    kv_wire: Wire = "exact"
    kv_memory_bytes: int = 512 << 20
    kv_entry_bytes: int = 256 << 20
    kv_node_bytes: int = 0
    kv_node_directory: str = ""
    shared_cache: bool = False
    state_url: str = "auto"
    session_ttl_s: float = 7 * 86_400.0
    session_first_ttl_s: float = 3600.0
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    quota_requests: int = 0
    quota_video_seconds: float = 0.0
    tenant_quotas: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    allow_private_hosts: tuple[str, ...] = ()
    file_roots: tuple[str, ...] = ()
    max_video_bytes: int = 1 << 30
    max_video_seconds: float = 3600.0
    max_video_pixels: int = 4096 * 2304
    max_video_frames: int = 250_000
    max_image_bytes: int = 32 << 20
    max_image_pixels: int = 50_000_000
    max_images: int = 16
    max_body_bytes: int = 64 << 20
    max_fetches: int = 32
    max_decodes: int = 32
    video_cache_bytes: int = 8 << 30
    upload_bytes: int = 8 << 30
    tenant_upload_bytes: int = 0
    upload_s: float = 900.0
    deadline_s: float = 120.0
    device: str = "cpu"
    dtype: Dtype = "float32"
    quantization: Quantization = "none"
    threads: int = 2
    chunk_frames: int = 2
    batch_views: int = 0
    batch_sequences: int = 16
    batch_tokens: int = 8192
    gpus_per_worker: float = 0.0
    workers: int = 1
    max_workers: int = 0
    target_queued_tokens: int = 0
    max_queued_tokens: int = 16_384
    max_ongoing: int = 64
    max_queued: int = 64
    log_format: Literal["auto", "json", "text"] = "auto"
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_socket: str = ""
    otlp_endpoint: str = ""
    job_concurrency: int = 2
    job_patience_s: float = 2.0
    max_jobs: int = 100
    max_job_questions: int = 10_000
    max_job_bytes: int = 64 << 20
    job_ttl_s: float = 86_400.0
    job_lease_s: float = 10.0
    host: str = "127.0.0.1"
    port: int = 8000
    directory: str = ""
    kv_detail: str = ""
    state_detail: str = ""

    def __post_init__(self) -> None:
        if not self.models:
            raise InvalidInput("OCCAM_MODELS must name at least one model.", "models")
        Keys(self.api_keys)
        self.allowance("")
        self._check_workers()
        if self.kv_wire != "exact" and self.kv_url == "memory://":
            raise InvalidInput(
                f"OCCAM_KV_WIRE={self.kv_wire} needs a shared tier, and OCCAM_KV_URL is memory://.",
                "kv_wire",
            )
        if not 1 <= self.port <= 65535:
            raise InvalidInput(f"{PREFIX}PORT must lie in 1..65535, got {self.port}.", "port")
        for each in fields(self):
            if each.type in (int, float):
                _check_number(each.name, getattr(self, each.name))

    def _check_workers(self) -> None:
        if self.max_workers and self.max_workers < self.workers:
            raise InvalidInput(
                f"OCCAM_MAX_WORKERS must be 0 or no less than OCCAM_WORKERS, which is {self.workers}, "
                f"got {self.max_workers}.",
                "max_workers",
            )
        if self.gpus_per_worker < 0 or (self.gpus_per_worker > 1 and self.gpus_per_worker % 1):
            raise InvalidInput(
                f"OCCAM_GPUS_PER_WORKER must be a whole number or a fraction of one, got {self.gpus_per_worker:g}.",
                "gpus_per_worker",
            )

    @classmethod
    def load(cls, environ: Mapping[str, str] = os.environ, **command_line: Any) -> "Settings":
        """Settings from the yaml file that `OCCAM_CONFIG` names, overridden by the environment and the command line.

        command_line: of those that are None nothing was said there
        """
        return cls(**{name: given.value for name, given in cls.given(environ, **command_line).items()})

    @classmethod
    def given(cls, environ: Mapping[str, str] = os.environ, **command_line: Any) -> "dict[str, Given]":
        """What is set at all, by name, and where; InvalidInput for unknown names and values of a wrong type."""
        known = {field.name: field.type for field in fields(cls)}
        said = {name: Given(value, "command line") for name, value in command_line.items() if value is not None}
        given = _given(environ) | said
        for name in given:
            if name not in known:
                raise InvalidInput(f"There is no setting {name!r} ({PREFIX}{name.upper()}).", name)
        return {name: replace(each, value=_parse(name, known[name], each.value)) for name, each in given.items()}

    @property
    def metrics_directory(self) -> Path:
        """The folder in which the processes of this node keep their metrics."""
        return Path(self.directory, _METRICS)

    @property
    def node_directory(self) -> Path:
        """The folder in which the workers of this node share states."""
        return Path(self.kv_node_directory or Path(self.directory, "kv"))

    @property
    def most_questions(self) -> int:
        """How many questions one ingress has in hand, their media found or not: as many as all its workers hold."""
        return len(self.models) * max(self.workers, self.max_workers) * self.max_ongoing

    @property
    def most_upload_bytes(self) -> int:
        """How many bytes the uploads of one tenant take at most."""
        shared = self.upload_bytes // 2 if self.api_keys else self.upload_bytes
        return min(self.tenant_upload_bytes or shared, self.upload_bytes)

    def of_node(self, environ: Mapping[str, str] = os.environ) -> "Settings":
        """These settings on a node whose Ray was started with an `OCCAM_DIRECTORY` of its own."""
        return replace(self, directory=environ.get(_DIRECTORY_VARIABLE) or self.directory)

    def salt(self, tenant: str) -> str:
        """What keeps a tenant's cached states apart from those of others; one for all where they share them."""
        return "" if self.shared_cache else tenant

    def allowance(self, tenant: str) -> Allowance:
        """The quotas of a tenant."""
        usual = Allowance(requests=self.quota_requests, video_seconds=self.quota_video_seconds)
        return allowances(self.tenant_quotas).get(tenant, usual)

    def engine(self, model: str) -> EngineConfig:
        """How a worker of `model` runs its engine."""
        return EngineConfig(
            model=model,
            device=self.device,
            dtype=self.dtype,
            quantization=self.quantization,
            chunk_frames=self.chunk_frames,
            batch_views=self.batch_views,
            threads=self.threads,
            batch_sequences=self.batch_sequences,
            batch_tokens=self.batch_tokens,
        )


def _check_number(name: str, value: float) -> None:
    may_be_zero = name in _MAY_BE_ZERO
    if not math.isfinite(value) or value < 0 or (value == 0 and not may_be_zero):
        least = "0 or more" if may_be_zero else "above 0"
        raise InvalidInput(f"{PREFIX}{name.upper()} must be {least} and finite, got {value}.", name)


@dataclass(frozen=True)
class Given:
    """A value that was set, and where: on the command line, in the environment, or in a file."""

    value: Any
    where: str


def counting_folder(environ: Mapping[str, str] = os.environ) -> Path | None:
    """The folder in which this process counts, of its own node where that has one; None: it does not count."""
    if METRICS_VARIABLE not in environ:
        return None
    own = environ.get(_DIRECTORY_VARIABLE)
    return Path(own, _METRICS) if own else Path(environ[METRICS_VARIABLE])


def model_name(model: str) -> str:
    """What requests and metrics call a model that is configured by name or by path."""
    return Path(model).name


def _given(environ: Mapping[str, str]) -> dict[str, Given]:
    """Everything that file and environment set, raw."""
    path = environ.get(FILE_VARIABLE)
    from_file = _read(Path(path)) if path else {}
    from_environment = {
        name.removeprefix(PREFIX).lower(): value
        for name, value in environ.items()
        if name.startswith(PREFIX) and name not in _NO_SETTINGS and not _is_kubernetes(name, value)
    }
    if environ.get(_STANDARD_ENDPOINT):
        from_environment.setdefault("otlp_endpoint", environ[_STANDARD_ENDPOINT])
    return {name: Given(value, str(path)) for name, value in from_file.items()} | {
        name: Given(value, "environment") for name, value in from_environment.items()
    }


def _read(path: Path) -> dict[str, Any]:
    """The yaml file; InvalidInput where it is none."""
    try:
        values = yaml.safe_load(path.read_text()) or {}
    except OSError as error:
        raise InvalidInput(f"{FILE_VARIABLE} names {path}: {error.strerror}.", FILE_VARIABLE) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{FILE_VARIABLE} names {path}, which is not yaml.", FILE_VARIABLE) from error
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise InvalidInput(f"{FILE_VARIABLE} names {path}, which is not `name: value` lines.", FILE_VARIABLE)
    return values


def _is_kubernetes(name: str, value: str) -> bool:
    """Whether Kubernetes set the variable, as it does in every pod beside a Service that is named `occam`."""
    return bool(_KUBERNETES.fullmatch(name)) or (name == f"{PREFIX}PORT" and "://" in value)


def _parse(name: str, kind: Any, value: Any) -> Any:
    """A raw value (text from the environment, anything from yaml) as the field's type."""
    if get_origin(kind) is tuple:
        if not isinstance(value, str | list):
            raise InvalidInput(f"{name} must be a list, or text with commas.", name)
        items = value.split(",") if isinstance(value, str) else value
        return tuple(str(item).strip() for item in items if str(item).strip())
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            raise InvalidInput(f"{name} must be one of {', '.join(get_args(kind))}, got {value!r}.", name)
        return value
    if kind is bool:
        return _switch(name, value)
    try:
        return kind(value)
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"{name} must be of type {kind.__name__}, got {value!r}.", name) from error


def _switch(name: str, value: Any) -> bool:
    """A raw value as yes or no: any text that is not empty would else be true."""
    known = {"true": True, "1": True, "false": False, "0": False}
    if str(value).lower() not in known:
        raise InvalidInput(f"{name} must be true or false, got {value!r}.", name)
    return known[str(value).lower()]

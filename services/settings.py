"""Every setting of the service, and the only place that reads the environment."""

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

_ABOVE_ZERO = (
    "deadline_s", "kv_ttl_s", "session_ttl_s", "session_first_ttl_s", "max_body_bytes", "max_fetches", "max_decodes",
    "threads", "chunk_frames", "batch_sequences", "batch_tokens", "workers", "max_ongoing", "max_queued_tokens",
    "upload_bytes", "upload_s",
    "job_concurrency", "max_jobs", "max_job_questions", "max_job_bytes", "job_ttl_s", "job_lease_s", "job_patience_s",
)  # fmt: skip
_ZERO_OR_MORE = ("target_queued_tokens", "tenant_upload_bytes")

_KUBERNETES = re.compile(PREFIX + r"(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings by name: `max_video_bytes` is `OCCAM_MAX_VIDEO_BYTES`, or `max_video_bytes:` in the yaml file.

    models: names or paths that are served; the first is the default
    kv_url: the cache's shared tier: `auto` (a private server), `memory://` (none), `redis://`, `rediss://`, `unix://`
    state_url: sessions and videos: `auto` (a private server) or the URL of a Redis without eviction
    session_ttl_s: videos, and sessions, that are not used; session_first_ttl_s: sessions that nobody has followed up on
    api_keys: `tenant:hash` of each key that is let in, as `occam key` prints it (none: everybody is one tenant)
    quota_requests: costly requests of a tenant in a minute; quota_video_seconds: seconds of video newly decoded for it
    in a day; 0: as many as come. tenant_quotas: `tenant:requests:seconds` of tenants for which it is otherwise
    allowed_hosts: hosts that may be fetched (empty: every public one); allow_private_hosts: host:port, private or not
    file_roots: directories of which files may be named by path (none by default)
    max_video_bytes, max_video_seconds, max_video_pixels, max_video_frames: of one video: its file, its length, one
    frame, frames walked; max_image_bytes, max_image_pixels: of one image; max_images: images in one conversation
    video_cache_bytes: of fetched files on one node, those that are just being fetched not among them
    deadline_s: in which every request must be through; one may name less
    max_fetches, max_decodes: files that one node fetches, and reads in children, at a time; others wait
    max_body_bytes: of a request; images inside it are a third longer than their files: one of the largest fits
    device, dtype: that models run on and in; threads: of one worker; chunk_frames: that go through the tower together
    workers: replicas per model; max_workers: there are as many as queued visual tokens need, from `workers` to these;
    0: always `workers`; target_queued_tokens: that one of them should have; 0: a quarter of max_queued_tokens
    gpus_per_worker: a fraction, so that several share one, or a whole number, as Ray counts them
    max_queued_tokens: visual tokens that one worker has yet to encode, cached ones not among them; beyond it new media
    are refused, and everything else goes on
    max_ongoing: questions of any kind that one worker holds at a time, for each holds its state in memory; max_queued:
    that wait for a worker to take them, in one ingress. They are the bound on follow-ups; new media meet the one
    before. An ingress takes no more questions than all its workers hold, for these wait for their media too
    job_concurrency: videos of jobs in hand at a time, one question of each; below max_ongoing, so that others find room
    job_patience_s: a job's question begins when no other is in flight, or after so long
    max_jobs: of one tenant, finished ones included; max_job_questions: videos x questions of one job
    max_job_bytes: that the jobs of one tenant take in the store, results included; job_ttl_s: how long results are kept
    job_lease_s: after which a job is taken over from an ingress that has died
    quantization: `int8` holds and multiplies linear maps in 8 bits, on CPUs with AVX512-VNNI
    batch_sequences, batch_tokens: answers that one worker decodes together, and tokens of one prefill, at most
    kv_wire: states reach the shared tier bit for bit (`exact`), or smaller and approximate (`int8`): answers say so
    kv_memory_bytes: states in one worker's memory; kv_entry_bytes: largest state that goes into the shared tier
    kv_node_bytes: states in files that all workers of a node share, and those that are started anew; 0: none, since a
    private server gives as much. For several workers of a node whose shared tier is elsewhere, or none
    kv_ttl_s: for how long a state is kept in the shared tier and on the node
    shared_cache: tenants share cached states: less work, and how quick an answer is tells what others have asked about
    kv_node_directory: of those files, this user's alone, made if its parent is there; `kv` in `directory` where empty
    log_format: `json` or `text` lines on standard output; `auto`: text on a terminal, else JSON
    log_level: of the least important lines; libraries' stay with Ray; log_socket: where the launcher takes lines
    otlp_endpoint: the OTLP/HTTP collector that traces are sent to, e.g. `http://localhost:4318`, in the extra `otel`;
    without one `OTEL_EXPORTER_OTLP_ENDPOINT`; none where both are empty
    upload_bytes: of all uploaded videos together, which are kept in `directory` as long as a video's record refers to
    them; upload_s: that one upload may take to come; tenant_upload_bytes: of one tenant's; 0: half of all where there
    are keys, all where there are none
    directory: node-local files (fetched and uploaded videos and images, metrics); a fresh private one where empty
    kv_detail, state_detail: what `auto` came to, in words for `/readyz`; the launcher fills them in
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
        for name in _ABOVE_ZERO:
            if not getattr(self, name) > 0:
                raise InvalidInput(f"{PREFIX}{name.upper()} must be above 0, got {getattr(self, name)}.", name)
        for name in _ZERO_OR_MORE:
            if getattr(self, name) < 0:
                raise InvalidInput(f"{PREFIX}{name.upper()} must be 0 or more, got {getattr(self, name)}.", name)
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
            threads=self.threads,
            batch_sequences=self.batch_sequences,
            batch_tokens=self.batch_tokens,
        )


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

"""Every setting of the service, and the only place that reads the environment."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml

from occam.config import Dtype, EngineConfig, Quantization, Wire
from occam.errors import InvalidInput

PREFIX = "OCCAM_"
FILE_VARIABLE = "OCCAM_CONFIG"

_ABOVE_ZERO = (
    "deadline_s", "kv_ttl_s", "session_ttl_s", "session_first_ttl_s", "max_body_bytes", "max_fetches", "max_decodes",
    "threads", "chunk_frames", "batch_sequences", "batch_tokens", "workers", "max_ongoing",
)  # fmt: skip

_KUBERNETES = re.compile(PREFIX + r"(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings by name: `max_video_bytes` is `OCCAM_MAX_VIDEO_BYTES`, or `max_video_bytes:` in the yaml file.

    models: names or paths that are served; the first is the default
    kv_url: the cache's shared tier: `auto` (a private server), `memory://` (none), `redis://`, `rediss://`, `unix://`
    state_url: sessions and videos: `auto` (a private server) or the URL of a Redis without eviction
    session_ttl_s: videos, and sessions, that are not used; session_first_ttl_s: sessions that nobody has followed up on
    allowed_hosts: hosts that may be fetched (empty: every public one); allow_private_hosts: host:port, private or not
    file_roots: directories of which files may be named by path (none by default)
    max_images: images in one conversation
    max_fetches, max_decodes: files that one node fetches, and reads in children, at a time; others wait
    max_body_bytes: of a request; images inside it are a third longer than their files: one of the largest fits
    workers: replicas per model; max_ongoing: requests that one replica takes at a time; max_queued: waiting behind them
    quantization: `int8` holds and multiplies linear maps in 8 bits, on CPUs with AVX512-VNNI
    batch_sequences, batch_tokens: answers that one worker decodes together, and tokens of one prefill, at most
    kv_wire: states reach the shared tier bit for bit (`exact`), or smaller and approximate (`int8`): answers say so
    kv_memory_bytes: states in one worker's memory; kv_entry_bytes: largest state that goes into the shared tier
    kv_node_bytes: states in files that all workers of a node share, and those that are started anew; 0: none, since a
    private server gives as much. For several workers of a node whose shared tier is elsewhere, or none
    kv_node_directory: of those files, this user's alone, made if its parent is there; `kv` in `directory` where empty
    directory: node-local files (fetched videos and images, metrics); a fresh private one where empty
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
    state_url: str = "auto"
    session_ttl_s: float = 7 * 86_400.0
    session_first_ttl_s: float = 3600.0
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
    max_ongoing: int = 32
    max_queued: int = 32
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
        if not 1 <= self.port <= 65535:
            raise InvalidInput(f"{PREFIX}PORT must lie in 1..65535, got {self.port}.", "port")

    @classmethod
    def load(cls, environ: Mapping[str, str] = os.environ) -> "Settings":
        """Settings from the yaml file that `OCCAM_CONFIG` names, overridden by the environment."""
        known = {field.name: field.type for field in fields(cls)}
        values = {name: _parse(name, kind, value) for name, kind, value in _given(known, environ)}
        return cls(**values)

    @property
    def metrics_directory(self) -> Path:
        """The folder in which the processes of this node keep their metrics."""
        return Path(self.directory, "metrics")

    @property
    def node_directory(self) -> Path:
        """The folder in which the workers of this node share states."""
        return Path(self.kv_node_directory or Path(self.directory, "kv"))

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


def model_name(model: str) -> str:
    """What requests and metrics call a model that is configured by name or by path."""
    return Path(model).name


def _given(known: Mapping[str, Any], environ: Mapping[str, str]) -> list[tuple[str, Any, Any]]:
    """(name, type, raw value) of everything that is set, the environment's last; InvalidInput for unknown names."""
    path = environ.get(FILE_VARIABLE)
    from_file = _read(Path(path)) if path else {}
    from_environment = {
        name.removeprefix(PREFIX).lower(): value
        for name, value in environ.items()
        if name.startswith(PREFIX) and name != FILE_VARIABLE and not _is_kubernetes(name, value)
    }
    for name in (*from_file, *from_environment):
        if name not in known:
            raise InvalidInput(f"There is no setting {name!r} ({PREFIX}{name.upper()}).", name)
    return [(name, known[name], value) for name, value in (from_file | from_environment).items()]


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
        items = value.split(",") if isinstance(value, str) else value
        return tuple(str(item).strip() for item in items if str(item).strip())
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            raise InvalidInput(f"{name} must be one of {', '.join(get_args(kind))}, got {value!r}.", name)
        return value
    try:
        return kind(value)
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"{name} must be of type {kind.__name__}, got {value!r}.", name) from error

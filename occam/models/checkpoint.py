"""Where a model's files are, and the digests that stand for them in cache keys."""

import hashlib
from pathlib import Path
from typing import TypeVar

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from transformers import PreTrainedModel

from occam.config import EngineConfig
from occam.errors import UnknownModel

M = TypeVar("M", bound=PreTrainedModel)

EMBEDDED = Path(__file__).parent / "tiny"
TEXT_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
)


def embedded_models() -> dict[str, Path]:
    """The models inside the package, by the name users ask for."""
    return {
        f"tiny-{path.name.replace('_', '-')}": path
        for path in sorted(EMBEDDED.iterdir())
        if (path / "config.json").exists()
    }


def locate(model: str) -> Path:
    """The directory of an embedded model, a local checkpoint or a hub repository; UnknownModel where there is none."""
    embedded = embedded_models()
    if model in embedded:
        return embedded[model]
    if (Path(model) / "config.json").exists():
        return Path(model)
    try:
        return Path(snapshot_download(model, allow_patterns=["*.json", "*.safetensors", "*.model", "*.jinja"]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        names = ", ".join(embedded)
        raise UnknownModel(
            f"There is no model {model!r}: not an embedded one ({names}), no checkpoint directory, and not on the hub.",
            "model",
        ) from error


def weights_digest(directory: Path) -> str:
    """SHA-256 over the checkpoint's safetensors files, in name order; UnknownModel where it has none."""
    files = sorted(directory.glob("*.safetensors"))
    if not files:
        raise UnknownModel(f"The checkpoint {directory.name!r} holds no safetensors weights.", "model")
    return _digest(files)


def config_digest(directory: Path) -> str:
    """SHA-256 over the model's and its processors' configurations: what else than weights decides a state."""
    files = [directory / "config.json", *sorted(directory.glob("*processor*config.json"))]
    named = [f"{file.name} {_digest([file])}\n" for file in files]
    return hashlib.sha256("".join(named).encode()).hexdigest()


def text_digest(directory: Path, template: str) -> str:
    """SHA-256 over the tokenizer's files and the prompt template."""
    return _digest([directory / name for name in TEXT_FILES if (directory / name).exists()], template.encode())


def load_stock(cls: type[M], directory: Path, config: EngineConfig) -> M:
    """A stock `transformers` model from safetensors (whole or sharded), frozen, on the configured device and dtype."""
    model = cls.from_pretrained(directory, dtype=getattr(torch, config.dtype), attn_implementation="sdpa")
    loaded: M = model.eval().requires_grad_(False).to(config.device)
    return loaded


def _digest(files: list[Path], more: bytes = b"") -> str:
    total = hashlib.sha256(more)
    for file in files:
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                total.update(block)
    return total.hexdigest()

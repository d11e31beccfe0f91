"""Where a model's files are, what its settings say, and the digests that stand for them in cache keys."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from transformers import PreTrainedModel

from occam.config import EngineConfig
from occam.errors import InvalidInput, UnknownModel
from occam.models.quantized import check_cpu, quantize
from occam.types import MediaKind

M = TypeVar("M", bound=PreTrainedModel)
V = TypeVar("V")

EMBEDDED = Path(__file__).parent / "tiny"
TEXT_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
)
PROCESSOR_FILE = "processor_config.json"
PROCESSOR_FILES: dict[MediaKind, tuple[str, ...]] = {
    "image": ("preprocessor_config.json",),
    "video": ("video_preprocessor_config.json", "preprocessor_config.json"),
}
"""Where a kind's processor has a file of its own, the first that there is."""
STOCK_PIXELS: dict[str, object] = {
    "do_resize": True,
    "resample": 3,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
}
"""The only values of these settings that are supported: the stock processors' defaults, where 3 is bicubic."""
CROPPED_PIXELS: dict[str, object] = STOCK_PIXELS | {"do_center_crop": True}
"""The same of the processors that crop; Qwen's stock ones never do, whatever the setting says."""


class Settings(dict[str, Any]):
    """A JSON object in a checkpoint's file; InvalidInput, naming file and key, for a key that is missing."""

    def __init__(self, content: Mapping[str, Any], file: Path) -> None:
        super().__init__(content)
        self.place = f"The {file.name} of the checkpoint {file.parent.name!r}"

    def __missing__(self, key: str) -> Any:
        raise InvalidInput(f"{self.place} has no {key}.", "model")

    def typed(self, key: str, kind: type[V]) -> V:
        """The value of `key`; InvalidInput where it is missing or not of that kind."""
        value = self[key]
        if not isinstance(value, kind):
            names: dict[type, str] = {Settings: "an object", list: "a list", str: "a string"}
            raise InvalidInput(f"{self.place} must have {names[kind]} as {key}, it has {value!r}.", "model")
        return value


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
        away = isinstance(error, LocalEntryNotFoundError)  # or it was told to stay offline
        on_the_hub = "in no local copy of the hub, which could not be reached" if away else "not on the hub"
        raise UnknownModel(
            f"There is no model {model!r}: not an embedded one ({', '.join(embedded)}), no checkpoint directory, and "
            f"{on_the_hub}.",
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


def read_settings(file: Path) -> Settings:
    """The object that a JSON file of a checkpoint holds; InvalidInput where it is broken or something else."""
    try:
        content = json.loads(file.read_text(), object_hook=lambda found: Settings(found, file))
    except (OSError, ValueError) as error:
        raise InvalidInput(f"The {file.name} of the checkpoint {file.parent.name!r} is not JSON.", "model") from error
    if not isinstance(content, Settings):
        raise InvalidInput(f"The {file.name} of the checkpoint {file.parent.name!r} is not a JSON object.", "model")
    return content


def processor_settings(directory: Path, kind: MediaKind) -> Settings:
    """What the checkpoint says of its image or video processor; InvalidInput where it says nothing.

    A section of `processor_config.json` (transformers 5 writes nothing else) goes before a file of its own, and a
    video does with the image processor's file where it has none, as in the stock `get_image_processor_dict`.
    """
    whole = directory / PROCESSOR_FILE
    if whole.exists() and (sections := read_settings(whole)).get(f"{kind}_processor"):
        return sections.typed(f"{kind}_processor", Settings)
    for name in PROCESSOR_FILES[kind]:
        if (directory / name).exists():
            return read_settings(directory / name)
    raise InvalidInput(
        f"The checkpoint {directory.name!r} has no settings of its {kind} processor: no {PROCESSOR_FILES[kind][0]}, "
        f"and no section {kind}_processor in {PROCESSOR_FILE}.",
        "model",
    )


def check_pixels(settings: Settings, supported: Mapping[str, object]) -> None:
    """InvalidInput for a setting that makes other pixels than the `supported` values; absent or null is a default."""
    for key, value in supported.items():
        if (said := settings.get(key)) is not None and said != value:
            raise InvalidInput(f"{settings.place} says {key} = {said!r}, supported is {value!r}.", "model")


def load_stock(cls: type[M], directory: Path, config: EngineConfig) -> M:
    """A stock `transformers` model from safetensors (whole or sharded), frozen, as the configuration says.

    InvalidInput where `device` is not one device that this machine has, or is none for int8.
    """
    if config.quantization == "int8" and not config.device.startswith("cpu"):
        raise InvalidInput(
            f"quantization int8 runs on a CPU only, got device {config.device!r}; take dtype bfloat16 there.",
            "quantization",
        )
    try:
        device = torch.device(config.device)
        torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InvalidInput(
            f"device must be one device of torch's that this machine has, as cpu or cuda:0, got {config.device!r}; "
            "a model is not spread over several.",
            "device",
        ) from error
    if config.quantization == "none":
        model = cls.from_pretrained(directory, dtype=getattr(torch, config.dtype), attn_implementation="sdpa")
    else:
        model = _quantized(cls, directory, config)
    loaded: M = model.eval().requires_grad_(False).to(device)
    return loaded


def _quantized(cls: type[M], directory: Path, config: EngineConfig) -> M:
    """The model with its linear maps in int8, never whole in float32, which may have no room."""
    stored = "auto" if config.dtype == "float32" else getattr(torch, config.dtype)
    check_cpu()
    model: M = cls.from_pretrained(directory, dtype=stored, attn_implementation="sdpa")
    quantize(model)
    if config.dtype == "float32":
        model.float()
    return model


def _digest(files: list[Path], more: bytes = b"") -> str:
    total = hashlib.sha256(more)
    for file in files:
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                total.update(block)
    return total.hexdigest()

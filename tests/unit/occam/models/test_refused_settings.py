"""Settings files that are broken, and settings that would make other pixels: refused by name."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from occam.errors import InvalidInput
from occam.models.anyres import AnyRes
from occam.models.checkpoint import processor_settings
from occam.models.preprocess import ClipPixels
from occam.models.prompt import CHATML, Prompt
from occam.models.qwen_pixels import QwenPixels

PREPROCESSOR = "preprocessor_config.json"
PIXELS = {
    "do_resize": True,
    "resample": 3,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}
CLIP = PIXELS | {"do_center_crop": True, "size": {"shortest_edge": 20}, "crop_size": {"height": 20, "width": 20}}
NEXT = CLIP | {"image_grid_pinpoints": [[40, 20]]}
QWEN = PIXELS | {
    "size": {"shortest_edge": 64, "longest_edge": 640},
    **{"patch_size": 2, "merge_size": 2, "temporal_patch_size": 2},
}
CONFIG = {"image_grid_pinpoints": [[40, 20]], "vision_config": {"image_size": 20}}
LOADERS: dict[str, tuple[dict[str, Any], Callable[[Path], object]]] = {
    "clip image": (CLIP, lambda folder: ClipPixels.load(folder, "image")),
    "clip video": (CLIP, lambda folder: ClipPixels.load(folder, "video")),
    "anyres": (NEXT, AnyRes.load),
    "qwen image": (QWEN, lambda folder: QwenPixels.load(folder, "image")),
    "qwen video": (QWEN, lambda folder: QwenPixels.load(folder, "video")),
}
OTHER = {
    "do_resize": False,
    "resample": 2,
    "do_rescale": False,
    "rescale_factor": 1 / 127.5,
    "do_normalize": False,
    "do_center_crop": False,
}


def write(folder: Path, content: object) -> Path:
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / PREPROCESSOR).write_text(json.dumps(content))
    return folder


def refused(match: str, call: Callable[[], object]) -> None:
    with pytest.raises(InvalidInput, match=match) as raised:
        call()
    assert raised.value.param == "model"


@pytest.mark.parametrize("setting", OTHER)
@pytest.mark.parametrize("name", LOADERS)
def test_a_setting_that_makes_other_pixels_is_refused(tmp_path: Path, name: str, setting: str) -> None:
    settings, load = LOADERS[name]
    expected, value = load(write(tmp_path, settings)), OTHER[setting]
    for default in (None, "absent"):
        rest = {key: said for key, said in settings.items() if key != setting}
        assert load(write(tmp_path, rest if default else rest | {setting: None})) == expected
    write(tmp_path, settings | {setting: value})
    if setting == "do_center_crop" and name.startswith("qwen"):
        assert load(tmp_path) == expected, "Qwen's stock processors have no crop to leave out"
        return
    supported = "3" if setting == "resample" else str(1 / 255) if setting == "rescale_factor" else "True"
    refused(f"{PREPROCESSOR} .* says {setting} = {value}, supported is {supported}", lambda: load(tmp_path))


@pytest.mark.parametrize("name", LOADERS)
def test_a_missing_key_is_named(tmp_path: Path, name: str) -> None:
    settings, load = LOADERS[name]
    for key in settings.keys() - OTHER.keys():
        write(tmp_path, {other: value for other, value in settings.items() if other != key})
        refused(f"The {PREPROCESSOR} of the checkpoint '{tmp_path.name}' has no {key}", lambda: load(tmp_path))
    write(tmp_path, settings | {"size": {}})
    refused(f"{PREPROCESSOR} .* has no shortest_edge", lambda: load(tmp_path))


@pytest.mark.parametrize("name", LOADERS)
@pytest.mark.parametrize(("key", "kind"), [("size", "an object"), ("image_mean", "a list"), ("image_std", "a list")])
def test_a_number_in_the_place_of_more_is_refused(tmp_path: Path, name: str, key: str, kind: str) -> None:
    settings, load = LOADERS[name]
    write(tmp_path, settings | {key: 20})
    refused(f"{PREPROCESSOR} .* must have {kind} as {key}, it has 20", lambda: load(tmp_path))


def test_tiles_need_a_crop_and_a_model_that_say_their_sizes(tmp_path: Path) -> None:
    write(tmp_path, NEXT | {"crop_size": 20})
    refused(f"{PREPROCESSOR} .* must have an object as crop_size, it has 20", lambda: AnyRes.load(tmp_path))
    write(tmp_path, NEXT)
    for key in CONFIG:
        (tmp_path / "config.json").write_text(json.dumps({other: CONFIG[other] for other in CONFIG if other != key}))
        refused(f"config.json .* has no {key}", lambda: AnyRes.load(tmp_path))


def template(folder: Path) -> None:
    Prompt(None, CHATML, "").check_template(folder)


READERS: dict[str, Callable[[Path], object]] = {
    PREPROCESSOR: lambda folder: processor_settings(folder, "image"),
    "video_preprocessor_config.json": lambda folder: processor_settings(folder, "video"),
    "processor_config.json": lambda folder: processor_settings(folder, "image"),
    "chat_template.json": template,
}


@pytest.mark.parametrize("file", READERS)
def test_a_broken_file_is_named(tmp_path: Path, file: str) -> None:
    for broken in (b"{", b"", b"\xff"):
        (tmp_path / file).write_bytes(broken)
        refused(f"The {file} of the checkpoint '{tmp_path.name}' is not JSON", lambda: READERS[file](tmp_path))
    for other in ("[]", "3", "null"):
        (tmp_path / file).write_text(other)
        refused(f"The {file} of the checkpoint '{tmp_path.name}' is not a JSON object", lambda: READERS[file](tmp_path))


def test_a_section_and_a_template_are_of_their_kind(tmp_path: Path) -> None:
    (tmp_path / "processor_config.json").write_text('{"image_processor": [1]}')
    refused(
        r"processor_config.json .* must have an object as image_processor, it has \[1\]",
        lambda: processor_settings(tmp_path, "image"),
    )
    (tmp_path / "chat_template.json").write_text("{}")
    refused("chat_template.json .* has no chat_template", lambda: template(tmp_path))
    (tmp_path / "chat_template.json").write_text('{"chat_template": 3}')
    refused("chat_template.json .* must have a string as chat_template", lambda: template(tmp_path))

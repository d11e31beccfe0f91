"""Where a checkpoint may keep the settings of its processors: all in one file (transformers 5), or a file each."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from occam.errors import InvalidInput
from occam.models.anyres import AnyRes
from occam.models.checkpoint import config_digest, processor_settings
from occam.models.preprocess import ClipPixels
from occam.models.qwen_pixels import QwenPixels
from tests.parity import checkpoint_qwen
from tests.parity.checkpoint import write_checkpoint
from tests.parity.checkpoint_llava import random_image, write_llava, write_llava_next
from tests.parity.stock_processors import resave

Pixels = Callable[[Path], object]
WRITERS: dict[str, Callable[[Path], Path]] = {
    "video_llava": write_checkpoint,
    "llava": write_llava,
    "llava_next": write_llava_next,
    "qwen3_vl": checkpoint_qwen.write_checkpoint,
}
READERS: dict[str, tuple[str, Pixels]] = {
    "video_llava": ("video_llava", lambda folder: ClipPixels.load(folder, "video")),
    "llava": ("llava", lambda folder: ClipPixels.load(folder, "image")),
    "padded llava": ("padded llava", lambda folder: ClipPixels.load(folder, "image")),
    "llava_next": ("llava_next", AnyRes.load),
    "qwen3_vl image": ("qwen3_vl", lambda folder: QwenPixels.load(folder, "image")),
    "qwen3_vl video": ("qwen3_vl", lambda folder: QwenPixels.load(folder, "video")),
}


def write_padded(folder: Path) -> Path:
    write_llava(folder)
    file = folder / "preprocessor_config.json"
    settings = {"image_processor_type": "LlavaImageProcessor", "do_pad": True}
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    return folder


@pytest.fixture(scope="module")
def layouts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """By family, the same checkpoint's configurations with a file for each processor, and with one for all."""
    writers = WRITERS | {"padded llava": write_padded}
    old = {name: write(tmp_path_factory.mktemp("old")) for name, write in writers.items()}
    new = {name: tmp_path_factory.mktemp("new") for name in writers}
    resave(list(old.values()), list(new.values()))
    for name, folder in new.items():
        shutil.copy(old[name] / "config.json", folder)
        assert not list(folder.glob("*preprocessor_config.json"))
    return {name: (old[name], new[name]) for name in writers}


@pytest.mark.parametrize("name", READERS)
def test_both_layouts_make_the_same_pixels(layouts: dict[str, tuple[Path, Path]], name: str) -> None:
    family, read = READERS[name]
    old, new = (read(folder) for folder in layouts[family])
    assert old == new
    if isinstance(old, ClipPixels):
        assert old.pad == (name == "padded llava")
    if not isinstance(old, QwenPixels):
        image = random_image(70, 100).frames
        assert torch.equal(old(image), new(image))  # type: ignore[operator]


def test_settings_in_one_file_are_part_of_the_digest(tmp_path: Path, layouts: dict[str, tuple[Path, Path]]) -> None:
    copy = Path(shutil.copytree(layouts["qwen3_vl"][1], tmp_path / "copy"))
    before, file = config_digest(copy), copy / "processor_config.json"
    content = json.loads(file.read_text())
    content["video_processor"]["max_video_tokens"] += 1
    file.write_text(json.dumps(content))
    assert config_digest(copy) != before


def test_the_stock_order_of_places(tmp_path: Path) -> None:
    """A file for images serves videos too, one for videos goes before it, and a section goes before both."""

    def say(name: str, content: object) -> None:
        (tmp_path / name).write_text(json.dumps(content))

    say("processor_config.json", {"patch_size": 14})
    with pytest.raises(
        InvalidInput, match=r"no video_preprocessor_config\.json, and no section video_processor in processor_config"
    ):
        processor_settings(tmp_path, "video")
    say("preprocessor_config.json", {"from": "image"})
    assert processor_settings(tmp_path, "video") == {"from": "image"}
    say("video_preprocessor_config.json", {"from": "video"})
    assert processor_settings(tmp_path, "video") == {"from": "video"}
    assert processor_settings(tmp_path, "image") == {"from": "image"}
    say("processor_config.json", {"video_processor": {"from": "section"}})
    assert processor_settings(tmp_path, "video") == {"from": "section"}
    assert processor_settings(tmp_path, "image") == {"from": "image"}

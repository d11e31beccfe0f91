"""Still images: what their pixels come to, and what becomes of images that mean harm."""

import asyncio
import base64
import io
import struct
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from occam.errors import ForbiddenSource, OccamError, UnsupportedVideo, VideoTooLarge
from pipelines.ingest import pillow_backend
from pipelines.ingest.decode import FrameStream
from pipelines.ingest.limits import Limits
from pipelines.ingest.local_file import LocalFile, open_local
from pipelines.ingest.policy import SourcePolicy
from pipelines.ingest.probe import probe
from pipelines.ingest.source import fetch

FORMATS = ("PNG", "JPEG", "WEBP")
NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (24, 40, 4), dtype=np.uint8))
ORIENTATION = 0x112


def encoded(image: Image.Image, format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def noise(format: str, **options: Any) -> bytes:
    options |= {"lossless": True} if format == "WEBP" else {}
    return encoded(NOISE.convert("RGB") if format == "JPEG" else NOISE, format, **options)


def oriented(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return exif


@pytest.fixture
def write(tmp_path: Path) -> Callable[[bytes], LocalFile]:
    def file(data: bytes) -> LocalFile:
        path = tmp_path / "image"
        path.write_bytes(data)
        return open_local(path, Limits())

    return file


def decode(file: LocalFile) -> np.ndarray:
    """In this process: the backend without its walls."""
    job = {"reader": file.reader, "path": str(file.path), "max_pixels": Limits().max_image_pixels}
    return pillow_backend._decode(job)


@pytest.mark.parametrize("format", FORMATS)
def test_an_image_comes_out_of_the_sandbox_upright(format: str, write: Callable[[bytes], LocalFile]) -> None:
    data = noise(format, exif=oriented(6))
    file = write(data)
    facts = probe(file, Limits())
    assert (file.kind, len(facts), facts.width, facts.height) == ("image", 1, 24, 40)
    with FrameStream(file, facts, np.array([0]), Limits(), chunk_frames=2) as stream:
        (batch,) = stream
    assert (batch.kind, batch.planned, batch.pts_seconds.tolist()) == ("image", 1, [0.0])
    assert stream.stats.backends == {"pillow": 1}
    np.testing.assert_array_equal(batch.frames[0], decode(file))
    with Image.open(io.BytesIO(data)) as image:
        assert np.array_equal(batch.frames[0], ImageOps.exif_transpose(on_white(image)))


def on_white(image: Image.Image) -> Image.Image:
    """Integer arithmetic of our own, and the EXIF kept."""
    rgba = np.asarray(image.convert("RGBA")).astype(int)
    alpha = rgba[..., 3:]
    rgb = Image.fromarray(((rgba[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8))
    rgb.info["exif"] = image.info.get("exif", b"")
    return rgb


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("format", FORMATS)
def test_every_orientation_is_turned_upright(
    format: str, orientation: int, write: Callable[[bytes], LocalFile]
) -> None:
    data = noise(format, exif=oriented(orientation))
    with Image.open(io.BytesIO(data)) as image:
        expected = np.asarray(ImageOps.exif_transpose(on_white(image)))
    np.testing.assert_array_equal(decode(write(data)), expected)


def test_exif_that_cannot_be_read_says_nothing(write: Callable[[bytes], LocalFile]) -> None:
    plain = decode(write(noise("JPEG")))
    np.testing.assert_array_equal(decode(write(noise("JPEG", exif=b"Exif\0\0nonsense"))), plain)


RED = (200, 100, 50)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("L", (5, 4), 90), (90, 90, 90)),
        (Image.new("1", (5, 4), 1), (255, 255, 255)),
        (Image.new("RGB", (5, 4), RED).quantize(4), RED),
        (Image.new("RGBA", (5, 4), (*RED, 0)), (255, 255, 255)),
        (Image.new("RGBA", (5, 4), (*RED, 51)), (244, 224, 214)),
        (Image.new("LA", (5, 4), (0, 51)), (204, 204, 204)),
        (Image.fromarray(np.full((4, 5), 0x80FF, np.uint16)), (128, 128, 128)),
    ],
    ids=["grey", "bits", "palette", "transparent", "translucent", "translucent grey", "16 bits"],
)
def test_pixels_of_every_kind_become_rgb(
    image: Image.Image, expected: tuple[int, int, int], write: Callable[[bytes], LocalFile]
) -> None:
    frame = decode(write(encoded(image, "PNG")))
    assert (frame.shape, frame.dtype) == ((4, 5, 3), np.uint8)
    assert np.abs(frame.astype(int) - expected).max() <= 1


def test_a_palette_may_have_a_transparent_colour(write: Callable[[bytes], LocalFile]) -> None:
    image = Image.new("P", (5, 4), 1)
    image.putpalette([0, 0, 0, *RED])
    assert decode(write(encoded(image, "PNG")))[0, 0].tolist() == list(RED)
    assert decode(write(encoded(image, "PNG", transparency=1)))[0, 0].tolist() == [255, 255, 255]


def test_inks_become_rgb(write: Callable[[bytes], LocalFile]) -> None:
    frame = decode(write(encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG")))
    assert np.abs(frame.astype(int) - (255, 0, 0)).max() <= 2


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(width: int, height: int, data: bytes, *more: bytes) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(more) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def webp(width: int, height: int) -> bytes:
    body = (
        b"VP8X"
        + struct.pack("<I", 10)
        + bytes(4)
        + struct.pack("<I", width - 1)[:3]
        + struct.pack("<I", height - 1)[:3]
    )
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (png(30_000, 30_000, bytes(3751 * 30_000)), "30000 x 30000 = 900000000 pixels, over the limit of 50000000"),
        (png(2**31 - 1, 2**31 - 1, b""), "over the limit of 50000000"),
        (webp(16_383, 16_383), "more pixels than the limit of 50000000"),
    ],
    ids=["bomb", "claim", "webp"],
)
def test_bombs_are_refused_by_their_size(data: bytes, match: str, write: Callable[[bytes], LocalFile]) -> None:
    file = write(data)
    assert file.bytes < 1 << 20
    with pytest.raises(VideoTooLarge, match=match):
        probe(file, Limits())


def test_images_have_their_own_limits(write: Callable[[bytes], LocalFile]) -> None:
    file = write(noise("PNG"))
    tight = replace(Limits(), max_pixels=1, max_bytes=1, max_image_pixels=960)
    assert probe(file, tight).width == 40
    assert open_local(file.path, tight) == file
    with pytest.raises(VideoTooLarge, match="The image has 40 x 24 = 960 pixels, over the limit of 959"):
        probe(file, replace(tight, max_image_pixels=959))
    with pytest.raises(VideoTooLarge, match=rf"The image has {file.bytes} bytes, more than the limit of 100\."):
        open_local(file.path, replace(tight, max_image_bytes=100))


def test_memory_is_limited(write: Callable[[bytes], LocalFile]) -> None:
    file = write(png(40_000, 1_200, bytes(5_001 * 1_200)))
    with pytest.raises(VideoTooLarge, match="more memory than the limit"):
        probe(file, replace(Limits(), memory_bytes=300 << 20))


def animated(format: str) -> bytes:
    frames = [Image.new("RGB", (8, 8), (shade, 0, 0)) for shade in (0, 120, 240)]
    return encoded(frames[0], format, save_all=True, append_images=frames[1:])


def text_bomb() -> bytes:
    info = PngInfo()
    info.add_text("x", "a" * (8 << 20), zip=True)
    return encoded(NOISE, "PNG", pnginfo=info)


@pytest.mark.parametrize(
    ("data", "match"),
    [
        *((noise(format)[: len(noise(format)) // 2], "cannot be decoded") for format in FORMATS),
        (animated("PNG"), "animated, of 3 frames"),
        (animated("WEBP"), "animated, of 3 frames"),
        (text_bomb(), "cannot be decoded: Decompressed data too large"),
        (b"\x89PNG\r\n\x1a\n#EXTM3U\nfile:///etc/passwd", "cannot be decoded"),
        (b"\xff\xd8\xff\xe0" + noise("PNG"), "cannot be decoded"),
        (b"RIFF\0\0\0\0WEBP" + bytes(40), "cannot be decoded"),
        (png(100, 100, b""), "cannot be decoded"),
    ],
    ids=[
        "cut.png",
        "cut.jpg",
        "cut.webp",
        "apng",
        "awebp",
        "text bomb",
        "playlist",
        "png in jpg",
        "empty.webp",
        "hollow",
    ],
)
def test_what_is_no_still_image_is_refused(data: bytes, match: str, write: Callable[[bytes], LocalFile]) -> None:
    with pytest.raises(UnsupportedVideo, match=match):
        decode(write(data))


def test_the_first_bytes_alone_decide_what_a_polyglot_is(plain_clip: Path, write: Callable[[bytes], LocalFile]) -> None:
    still = noise("PNG")
    both = write(still + b"<script>" + plain_clip.read_bytes())
    assert both.kind == "image"
    np.testing.assert_array_equal(decode(both), decode(write(still)))


def test_a_photograph_with_more_pictures_is_its_first(write: Callable[[bytes], LocalFile]) -> None:
    first = Image.new("RGB", (8, 8), (250, 0, 0))
    data = encoded(first, "MPO", save_all=True, append_images=[Image.new("RGB", (8, 8), (0, 0, 250))])
    assert np.abs(decode(write(data)).astype(int) - (250, 0, 0)).max() < 5


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # about EXIF; the child's go to its own log
def test_damaged_images_never_crash_the_reader(write: Callable[[bytes], LocalFile]) -> None:
    dice = np.random.default_rng(0)
    decoded = 0
    for data in (noise(format, exif=oriented(6)) for format in FORMATS):
        for _ in range(150):
            damaged = bytearray(data)
            for place in dice.integers(16, min(len(data), 200), 3):
                damaged[place] = dice.integers(256)
            with suppress(OccamError):
                decoded += decode(write(bytes(damaged))).shape[2] == 3
    assert 0 < decoded < 450


def unpacked(url: str, tmp_path: Path, **options: Any) -> LocalFile:
    limits = options.pop("limits", Limits())
    return asyncio.run(fetch(url, SourcePolicy(**options.pop("policy", {})), limits, tmp_path, **options))


def data_url(data: bytes, header: str = "data:image/png;base64") -> str:
    return f"{header},{base64.b64encode(data).decode()}"


@pytest.mark.parametrize("header", ["data:image/png;base64", "DATA:image/JPEG;charset=x;Base64"])
def test_a_data_url_holds_its_image(header: str, tmp_path: Path) -> None:
    """Its bytes say which kind of image they are, as they do everywhere."""
    data = noise("PNG")
    file = unpacked(data_url(data, header), tmp_path, kind="image")
    assert file.path.read_bytes() == data
    assert (file.path.parent, file.reader, file.bytes) == (tmp_path, "png", len(data))
    assert file.digest == write_digest(data, tmp_path)


def write_digest(data: bytes, folder: Path) -> str:
    path = folder / "same"
    path.write_bytes(data)
    return open_local(path, Limits()).digest


@pytest.mark.parametrize(
    ("url", "error", "match"),
    [
        (data_url(noise("PNG"), "data:video/mp4;base64"), ForbiddenSource, "must hold an image"),
        (data_url(noise("PNG"), "data:image/png"), ForbiddenSource, "must hold an image"),
        (data_url(noise("PNG"), "data:;base64"), ForbiddenSource, "must hold an image"),
        ("data:", ForbiddenSource, "must hold an image"),
        ("data:image/png;base64,", UnsupportedVideo, "empty"),
        ("data:image/png;base64,AAA", UnsupportedVideo, "not base64"),
        ("data:image/png;base64,AA\nAA", UnsupportedVideo, "not base64"),
        ("data:image/png;base64,ÄÄÄÄ", UnsupportedVideo, "not base64"),
        (data_url(b"#EXTM3U\n"), UnsupportedVideo, "playlist"),
        (data_url(b"\0\0\0\x20ftypisom"), UnsupportedVideo, "another kind than was said: video, not image"),
        (data_url(bytes(1001)), VideoTooLarge, "The image has 1001 bytes, more than the limit of 1000"),
    ],
)
def test_data_urls_that_hold_no_image(url: str, error: type[OccamError], match: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=match):
        unpacked(url, tmp_path, kind="image", limits=Limits(max_image_bytes=1000))
    assert not list(tmp_path.iterdir())


def test_a_file_must_be_of_the_kind_that_was_said(plain_clip: Path, tmp_path: Path) -> None:
    still = tmp_path / "still.png"
    still.write_bytes(noise("PNG"))
    policy = {"file_roots": (tmp_path, plain_clip.parent)}
    for path, kind, other in ((still, "image", "video"), (plain_clip, "video", "image")):
        assert unpacked(str(path), tmp_path, policy=policy).kind == kind
        assert unpacked(str(path), tmp_path, policy=policy, kind=kind).kind == kind
        with pytest.raises(UnsupportedVideo, match=f"{kind}, not {other}"):
            unpacked(str(path), tmp_path, policy=policy, kind=other)

"""Decoding still images with Pillow: one format, one frame, upright, in RGB. Runs inside the sandbox.

What is transparent is laid on white. An animated image is refused: its first frame alone is not what was sent. A
photograph with further pictures behind the first (MPO) is its first picture.
"""

import struct
from typing import Any

import numpy as np
import numpy.typing as npt

# Whatever is first imported inside the walls fails. Pillow imports TIFF when it first meets EXIF.
import PIL.TiffImagePlugin  # noqa: F401
from PIL import ExifTags, Image
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from occam.errors import UnsupportedVideo, VideoTooLarge
from pipelines.ingest.limits import check_pixels
from pipelines.ingest.wire import Kind, send_array, send_json

_READERS: dict[str, type[ImageFile]] = {"png": PngImageFile, "jpeg": JpegImageFile, "webp": WebPImageFile}
_UPRIGHT = {  # by EXIF's orientation, 1 being upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# What Pillow is seen to raise over damaged EXIF, and, with OSError, over damaged images.
_BAD_EXIF = (SyntaxError, ValueError, TypeError, KeyError, struct.error)


def run(job: dict[str, Any]) -> None:
    """Decode the job's image, and give its facts, or its frame if the job has a target."""
    Image.MAX_IMAGE_PIXELS = job["max_pixels"]
    frame = _decode(job)
    if job["targets"]:
        send_array(Kind.FRAME, frame)
        return
    height, width, _ = frame.shape
    facts = {"codec": job["reader"], "pix_fmt": "rgb24", "width": width, "height": height, "turns": 0}
    timeline = {"time_base": [1, 1], "origin": 0, "last_duration": 0, "plain": True}
    send_json(Kind.FACTS, {**facts, **timeline})
    for kind in (Kind.STAMPS, Kind.KEYS):
        send_array(kind, np.zeros(1, np.int64))
    send_array(Kind.HIDDEN, np.zeros(0, np.int64))


def _decode(job: dict[str, Any]) -> npt.NDArray[np.uint8]:
    """The image as uint8 [H, W, 3]. Its size is looked at before any of its pixels is decoded."""
    try:
        with _READERS[job["reader"]](job["path"]) as image:
            check_pixels("image", *image.size, job["max_pixels"])
            frames = getattr(image, "n_frames", 1)
            if frames == 1 or job["reader"] == "jpeg":
                return np.asarray(_upright(image, _rgb(image)))
    except VideoTooLarge:
        raise
    except Image.DecompressionBombError:
        raise VideoTooLarge(f"The image has more pixels than the limit of {job['max_pixels']}.") from None
    except (OSError, EOFError, *_BAD_EXIF) as error:
        raise UnsupportedVideo(f"The image cannot be decoded: {error}.") from None
    raise UnsupportedVideo(f"The image is animated, of {frames} frames. Only still images are taken.")


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "I;16":  # Pillow's own conversion cuts values off at 255
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    over = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), over).convert("RGB")


def _upright(image: Image.Image, rgb: Image.Image) -> Image.Image:
    """`rgb` as the EXIF of `image` says it should be looked at; EXIF that cannot be read says nothing."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except _BAD_EXIF:
        return rgb
    return rgb.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else rgb

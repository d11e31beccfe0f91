"""How large and how slow a video or an image may be: every limit is a setting, and every breach a typed error."""

from dataclasses import dataclass, fields

from occam.errors import InvalidInput, VideoTooLarge
from occam.types import MediaKind


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds on one video or image, from its first byte to its last frame.

    max_bytes, max_image_bytes: size of the file
    max_seconds: length of its video stream
    max_pixels, max_image_pixels: width times height of one frame; still images may have more than frames of a video
    max_aspect: a frame's longer side over its shorter, since a model scales the shorter one to its own size, then crops
    max_frames: frames in its video stream, since a decoder walks frames that nobody sampled
    connect_s, read_s, total_s: seconds to connect, to wait for the next bytes, and to fetch all of them
    redirects: hops that a fetch follows
    memory_bytes: address space of the child process that decodes
    """

    max_bytes: int = 1 << 30
    max_seconds: float = 3600.0
    max_pixels: int = 4096 * 2304
    max_image_bytes: int = 32 << 20
    max_image_pixels: int = 50_000_000
    max_aspect: float = 32.0
    max_frames: int = 250_000
    connect_s: float = 5.0
    read_s: float = 10.0
    total_s: float = 120.0
    redirects: int = 3
    memory_bytes: int = 3 << 30

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value < 0 or (value == 0 and field.name != "redirects"):
                raise InvalidInput(f"{field.name} must be positive, got {value}.", field.name)

    def pixels_of(self, kind: MediaKind) -> int:
        """The most pixels that one frame of this kind may have."""
        return self.max_image_pixels if kind == "image" else self.max_pixels

    def check_bytes(self, kind: MediaKind, size: int) -> None:
        """Raise VideoTooLarge if a file of this kind may not have `size` bytes."""
        limit = self.max_image_bytes if kind == "image" else self.max_bytes
        if size > limit:
            raise VideoTooLarge(f"The {kind} has {size} bytes, more than the limit of {limit}.")


def check_pixels(kind: MediaKind, width: int, height: int, limit: int) -> None:
    """Raise VideoTooLarge if a frame of this kind has more than `limit` pixels."""
    pixels = width * height
    if pixels > limit:
        what = "The image" if kind == "image" else "A frame"
        raise VideoTooLarge(f"{what} has {width} x {height} = {pixels} pixels, over the limit of {limit}.")


def check_aspect(kind: MediaKind, width: int, height: int, limit: float) -> None:
    """Raise VideoTooLarge if one side of a frame of this kind is more than `limit` times the other."""
    aspect = max(width, height) / min(width, height)
    if aspect > limit:
        what = "The image" if kind == "image" else "A frame"
        raise VideoTooLarge(
            f"{what} has {width} x {height} pixels, one side {aspect:g} times the other, over the limit of {limit:g}."
        )

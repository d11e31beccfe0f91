"""How large and how slow a video may be: every limit is a setting, and every breach a typed error."""

from dataclasses import dataclass, fields

from occam.errors import InvalidInput


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds on one video, from its first byte to its last frame.

    max_bytes: size of the file
    max_seconds: length of its video stream
    max_pixels: width times height of one frame; max_aspect: its longer side over its shorter, since a model scales the
    shorter one up to its own size before it crops
    max_frames: frames in its video stream, since a decoder walks frames that nobody sampled
    connect_s, read_s, total_s: seconds to connect, to wait for the next bytes, and to fetch all of them
    redirects: hops that a fetch follows
    memory_bytes: address space of the child process that decodes
    """

    max_bytes: int = 1 << 30
    max_seconds: float = 3600.0
    max_pixels: int = 4096 * 2304
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

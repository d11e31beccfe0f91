"""Images that a client sends inside the request itself: `data:image/png;base64,...` (RFC 2397)."""

import base64
import binascii

from occam.errors import ForbiddenSource, UnsupportedVideo
from pipelines.ingest.limits import Limits


def image_bytes(url: str, limits: Limits) -> bytes:
    """Return the bytes that a data URL holds, whatever image type it names: the bytes say that themselves.

    Raises ForbiddenSource for anything but a base64 image, VideoTooLarge before decoding, UnsupportedVideo.
    """
    header, _, text = url.partition(",")
    header = header[:200].lower()
    if not (header.startswith("data:image/") and header.endswith(";base64")):
        raise ForbiddenSource("A data URL must hold an image: data:image/...;base64,...")
    limits.check_bytes("image", len(text) // 4 * 3 - text[-2:].count("="))
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise UnsupportedVideo("The data URL's text is not base64.") from None

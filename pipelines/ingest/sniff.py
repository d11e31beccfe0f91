"""From a file's first bytes to the one reader that may open it: FFmpeg's demuxer of a video, Pillow's of an image.

A demuxer that guesses will take a playlist for a video and open what the playlist names. So nothing guesses: a file
whose first bytes are not listed here is refused before any reader sees it.
"""

from occam.errors import UnsupportedVideo
from occam.types import MediaKind

HEAD_BYTES = 1024

_ISO_BOXES = {b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"}
_PREFIXES = {
    b"\x1aE\xdf\xa3": "matroska",
    b"GIF87a": "gif",
    b"GIF89a": "gif",
    b"FLV\x01": "flv",
    b"\x00\x00\x01\xba": "mpeg",
    b"\x89PNG\r\n\x1a\n": "png",
    b"\xff\xd8\xff": "jpeg",
}
_IMAGES = {"png", "jpeg", "webp"}
_PLAYLISTS = (b"#EXTM3U", b"ffconcat", b"<?xml", b"<MPD", b"v=0", b"[playlist]")
_TS_SYNC = 0x47
_TS_PACKETS = ((0, 188), (4, 192))


def kind_of(reader: str) -> MediaKind:
    """Whether a reader is one of videos or of images."""
    return "image" if reader in _IMAGES else "video"


def reader_of(head: bytes) -> str:
    """Return the name of the reader for a file that begins with `head` (at least its first 1024 bytes, or all).

    Raises UnsupportedVideo for playlists, empty files and everything that is not a known container.
    """
    if not head:
        raise UnsupportedVideo("The file is empty.")
    if head[4:8] in _ISO_BOXES:
        return "mov"
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return "avi"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "webp"
    for prefix, reader in _PREFIXES.items():
        if head.startswith(prefix):
            return reader
    if any(_is_transport_stream(head, start, step) for start, step in _TS_PACKETS):
        return "mpegts"
    if head.lstrip().startswith(_PLAYLISTS):
        raise UnsupportedVideo("The file is a playlist or a description of a stream, and not a video.")
    raise UnsupportedVideo("The file's first bytes are not those of a known video or image format.")


def _is_transport_stream(head: bytes, start: int, step: int) -> bool:
    syncs = head[start::step][:4]
    return len(syncs) >= 3 and all(byte == _TS_SYNC for byte in syncs)

import pytest

from occam.errors import UnsupportedVideo
from pipelines.ingest.sniff import reader_of

TS = (b"G" + bytes(187)) * 5


@pytest.mark.parametrize(
    ("head", "reader"),
    [
        (b"\0\0\0\x20ftypisom", "mov"),
        (b"\0\0\0\x08wide\0\0", "mov"),
        (b"\x1aE\xdf\xa3\x01", "matroska"),
        (b"RIFF\0\0\0\0AVI LIST", "avi"),
        (b"GIF89a", "gif"),
        (b"FLV\x01\x05", "flv"),
        (b"\0\0\x01\xba", "mpeg"),
        (b"\x89PNG\r\n\x1a\n\0", "png"),
        (b"\xff\xd8\xff\xe0", "jpeg"),
        (b"RIFF\0\0\0\0WEBPVP8 ", "webp"),
        (TS, "mpegts"),
        (b"\0\0\0\0" + (b"G" + bytes(191)) * 5, "mpegts"),
    ],
)
def test_known_containers(head: bytes, reader: str) -> None:
    assert reader_of(head) == reader


@pytest.mark.parametrize(
    "head",
    [
        b"#EXTM3U\n#EXT-X-TARGETDURATION:1\nfile:///etc/passwd",
        b"  \n#EXTM3U\n",
        b"ffconcat version 1.0\nfile /etc/passwd",
        b"<?xml version='1.0'?><MPD></MPD>",
        b"v=0\no=- 0 0 IN IP4 127.0.0.1",
    ],
)
def test_playlists_are_named_as_such(head: bytes) -> None:
    with pytest.raises(UnsupportedVideo, match="playlist"):
        reader_of(head)


@pytest.mark.parametrize(
    "head",
    [b"\x7fELF", b"%PDF-1.7", b"RIFF\0\0\0\0WAVEfmt ", b"GIF", b"G" * 2, b"<html>", b"\0" * 1024, b"#!/bin/sh\nftyp"],
)
def test_anything_else_is_refused(head: bytes) -> None:
    with pytest.raises(UnsupportedVideo, match="first bytes"):
        reader_of(head)


def test_an_empty_file_says_so() -> None:
    with pytest.raises(UnsupportedVideo, match="empty"):
        reader_of(b"")

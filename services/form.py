"""The one form that is taken: `multipart/form-data` with one part `file`, parsed as its bytes come."""

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.types import Scope

from services.errors import MalformedRequest

FORM = "multipart/form-data"
PART = "file"
OVERHEAD = 64 << 10
"""Bytes of a form that are not the file's: boundaries, headers, whatever stands around them."""


def is_form(scope: Scope) -> bool:
    """Whether a request says that its body is a form."""
    given = next((value for name, value in scope["headers"] if name == b"content-type"), b"")
    return parse_options_header(given)[0] == FORM.encode()


class FileForm:
    """The parser of one form: whatever is fed gives the bytes of the file in it. Everything else is MalformedRequest.

    content_type: the header, which names the boundary
    """

    def __init__(self, content_type: str) -> None:
        boundary = parse_options_header(content_type)[1].get(b"boundary", b"")
        if not boundary:
            raise MalformedRequest(f"The Content-Type {FORM} names no boundary.")
        self._name, self._value, self._file = bytearray(), bytearray(), bytearray()
        callbacks = {
            "on_part_begin": self._on_part,
            "on_header_field": lambda data, start, end: self._name.extend(data[start:end]),
            "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
            "on_header_end": self._on_header,
            "on_headers_finished": self._on_headers,
            "on_part_data": lambda data, start, end: self._file.extend(data[start:end]),
            "on_end": self._on_end,
        }
        try:
            self._parser = MultipartParser(boundary, callbacks)  # type: ignore[arg-type]
        except FormParserError as error:
            raise MalformedRequest(f"The Content-Type's boundary cannot be used: {error}.") from None
        self._part: bytes | None = None
        self._parts = 0
        self._around = 0
        self._ended = False

    def feed(self, data: bytes) -> bytes:
        """The file's bytes in the next bytes of the body."""
        try:
            self._parser.write(data)
        except FormParserError as error:
            raise MalformedRequest(f"The body is not {FORM}: {error}.") from None
        taken = bytes(self._file)
        self._file.clear()
        self._around += len(data) - len(taken)
        if self._around > OVERHEAD:
            raise MalformedRequest(f"The form has more than {OVERHEAD} bytes beside its file.")
        return taken

    def close(self) -> None:
        """Say that the body has ended."""
        if not self._parts:
            raise MalformedRequest(f"The form has no part {PART!r}.", PART)
        if not self._ended:
            raise MalformedRequest("The form breaks off before its last boundary.")

    def _on_part(self) -> None:
        self._parts += 1
        if self._parts > 1:
            raise MalformedRequest(f"The form has more than one part; it has one, {PART!r}.", PART)
        self._part = None

    def _on_header(self) -> None:
        if self._name.lower() == b"content-disposition":
            self._part = parse_options_header(bytes(self._value))[1].get(b"name")
        self._name.clear()
        self._value.clear()

    def _on_headers(self) -> None:
        if self._part != PART.encode():
            found = "has no name" if self._part is None else f"is {self._part[:40].decode(errors='replace')!r}"
            raise MalformedRequest(f"The form's part {found}; the one part of the form is {PART!r}.", PART)

    def _on_end(self) -> None:
        self._ended = True

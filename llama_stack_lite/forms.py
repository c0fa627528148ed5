"""multipart/form-data (RFC 7578) as it comes: its one file onto disk, its short texts into memory."""

import asyncio
import hashlib
import re
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header
from starlette.requests import ClientDisconnect, Request

from .errors import ClientGone, InvalidRequest, TooLarge, Unavailable

PARTS = 32  # of a form
FIELD = 4096  # bytes of a text, and of a line that tells of a part
AROUND = 64 * 1024  # bytes that a form may have beside its file
PIECE = 1024 * 1024  # bytes that are taken to disk at once
NAME = 255  # characters of a file name
UNSEEN = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Upload:
    """A file that came: where it lies until it is kept, its size in bytes and its SHA-256."""

    path: Path
    filename: str
    size: int
    digest: str


@dataclass(frozen=True, slots=True)
class Form:
    """The file of the part `file`, if one came, and the texts of all other parts."""

    file: Upload | None
    texts: dict[str, str]


@asynccontextmanager
async def received(http: Request, *, limit: int, setting: str) -> AsyncIterator[Form]:
    """The form that a request carries; its file is gone with the block.

    The file may have `limit` bytes, which `setting` says. Raises `InvalidRequest` naming the part at fault,
    `TooLarge` as soon as that is sure, `ClientGone`, and `Unavailable` where the disk is full.
    """
    kind, options = parse_options_header(http.headers.get("content-type"))
    boundary = options.get(b"boundary", b"")
    if kind != b"multipart/form-data" or not boundary:
        raise InvalidRequest("the file must come as the part `file` of `multipart/form-data`", param="file")
    declared = http.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit + AROUND:
        raise _too_large(limit, setting)
    try:
        with _temporary() as disk:
            reader = _Reader(boundary, disk, limit=limit, setting=setting)
            await _read(http, reader, most=limit + AROUND)
            yield reader.form(Path(disk.name))
    except ClientDisconnect as error:
        raise ClientGone from error
    except FormParserError as error:
        raise InvalidRequest(f"the form cannot be read: {error}", param="file") from error


def _temporary() -> "tempfile._TemporaryFileWrapper[bytes]":
    try:  # without a buffer, whose rest could not be written to a full disk when it is closed
        return tempfile.NamedTemporaryFile(prefix="llama-lite-", buffering=0)
    except OSError as error:
        raise Unavailable(f"the file cannot be taken in: {error.strerror}") from error


async def _read(http: Request, reader: "_Reader", *, most: int) -> None:
    """Give the body to the reader, off the event loop and in pieces that are worth it."""
    size, waiting = 0, bytearray()
    async for data in http.stream():
        size += len(data)
        if size > most:
            raise _too_large(reader.limit, reader.setting)
        waiting += data
        if len(waiting) >= PIECE:
            await asyncio.to_thread(reader.write, bytes(waiting))
            waiting.clear()
    await asyncio.to_thread(reader.write, bytes(waiting))
    reader.finish()


def _too_large(limit: int, setting: str) -> TooLarge:
    return TooLarge(
        f"file: it has more than {limit} bytes, which is the most here (`{setting}`)", param="file"
    )


class _Reader:
    """Told by the parser of each part as it comes."""

    def __init__(self, boundary: bytes, disk: IO[bytes], *, limit: int, setting: str) -> None:
        self.disk, self.limit, self.setting = disk, limit, setting
        self.texts: dict[str, bytearray] = {}
        self.filename: str | None = None
        self.size, self.digest = 0, hashlib.sha256()
        self._parts, self._ended = 0, False
        self._name, self._value = bytearray(), bytearray()  # of the header that is being read
        self._disposition = b""
        self._text: bytearray | None = None  # of the part that is being read; None in the file
        # the parser's own limits hold for the headers of a part: 8 of them, of 4 KiB each
        self._parser = MultipartParser(boundary, self._callbacks(), max_header_size=FIELD)

    def _callbacks(self) -> Any:
        return {
            "on_part_begin": self._begin,
            "on_header_field": lambda data, start, end: self._name.extend(data[start:end]),
            "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
            "on_header_end": self._header,
            "on_headers_finished": self._open,
            "on_part_data": self._data,
            "on_end": self._end,
        }

    def write(self, data: bytes) -> None:
        """Read on; in a thread, as it writes and hashes."""
        try:
            self._parser.write(data)
        except OSError as error:
            raise Unavailable(f"the file cannot be taken in: {error.strerror}") from error

    def finish(self) -> None:
        if not self._ended:
            raise InvalidRequest("the form has no end: its last boundary did not come", param="file")

    def form(self, path: Path) -> Form:
        texts = {name: text.decode(errors="replace") for name, text in self.texts.items()}
        if self.filename is None:
            return Form(None, texts)
        return Form(Upload(path, self.filename, self.size, self.digest.hexdigest()), texts)

    def _begin(self) -> None:
        self._parts += 1
        if self._parts > PARTS:
            raise InvalidRequest(f"a form has at most {PARTS} parts here")
        self._disposition = b""

    def _header(self) -> None:
        if self._name.lower() == b"content-disposition":
            self._disposition = bytes(self._value)
        self._name.clear()
        self._value.clear()

    def _open(self) -> None:
        """What the part is: `file` with a file name is the file, all else is text."""
        _, options = parse_options_header(self._disposition)
        name = options.get(b"name", b"").decode(errors="replace")
        filename = options.get(b"filename")
        if name == "file" and filename:
            if self.filename is not None:
                raise InvalidRequest("file: there are two of it, and an upload has one", param="file")
            self.filename, self._text = plain_name(filename.decode(errors="replace")), None
        else:
            self._text = self.texts[name] = bytearray()

    def _data(self, data: bytes, start: int, end: int) -> None:
        piece = data[start:end]
        if self._text is not None:
            self._text += piece
            if len(self._text) > FIELD:
                raise InvalidRequest(f"a text of a form has at most {FIELD} bytes; a file needs its name")
            return
        self.size += len(piece)
        if self.size > self.limit:
            raise _too_large(self.limit, self.setting)
        self.digest.update(piece)
        while piece:  # a disk that is nearly full takes a part
            piece = piece[self.disk.write(piece) :]

    def _end(self) -> None:
        self._ended = True


def plain_name(filename: str) -> str:
    """A file's name without folders and control characters; raises `InvalidRequest` for one too long."""
    name = UNSEEN.sub("", filename.replace("\\", "/").rpartition("/")[2]).strip()
    if len(name) > NAME:
        raise InvalidRequest(f"file: its name has more than {NAME} characters", param="file")
    return name or "upload"

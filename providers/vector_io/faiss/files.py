"""The files of an index: a log of all that came and went, and the graph, which takes long to make."""

import fcntl
import logging
import os
import secrets
import struct
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import faiss
import numpy as np

from llama_stack_lite.state.vectors import Matrix

MAGIC = b"LITEVEC1"
HEAD = struct.Struct("<8s16sII")  # magic, the log's own name, dimension; checksum of these
ENTRY = struct.Struct("<BxxxIQII")  # kind, how many keys, version, checksum of the rest; checksum of these
ADD, REMOVE, KNOW = 1, 2, 3
MOST = 4096  # keys of one entry
log = logging.getLogger(__name__)


class Corrupt(Exception):
    """A file does not hold what was written to it."""


@dataclass(frozen=True, slots=True)
class Entry:
    """Keys that came, with their `rows`, or went; or, without keys, the version that is known with this."""

    keys: Sequence[int]
    rows: Matrix | None = None
    version: int | None = None

    def parts(self) -> list[bytes]:
        kind = KNOW if self.version is not None else REMOVE if self.rows is None else ADD
        body = [np.asarray(self.keys, "<i8").tobytes()]
        if self.rows is not None:
            body.append(np.ascontiguousarray(self.rows, "<f4").tobytes())
        head = ENTRY.pack(kind, len(self.keys), self.version or 0, _sum(*body), 0)[:-4]
        return [head, struct.pack("<I", zlib.crc32(head)), *body]


class Log:
    """A file that only grows; who has it open has it alone.

    An end that was not written whole, as by a process that was killed, is cut off; any other damage is
    `Corrupt`.
    """

    def __init__(self, path: Path, dimension: int) -> None:
        """Open or make the file; raises `BlockingIOError` where another process has it, or `OSError`."""
        self.path = path
        self.dimension = dimension
        self.name = b""
        self.added = 0  # rows in the file
        self._end = 0
        self._file = _locked(path)

    def entries(self) -> Iterator[Entry]:
        """All that is in the file; what is added afterwards comes behind it. Raises `Corrupt`, `OSError`."""
        size = os.fstat(self._file).st_size
        with open(self._file, "rb", closefd=False, buffering=1 << 20) as file:
            file.seek(0)
            if size < HEAD.size:
                self._begin()
                return
            self._read_head(file.read(HEAD.size))
            self._end = HEAD.size
            while (entry := self._read(file, size)) is not None:
                self.added += 0 if entry.rows is None else len(entry.keys)
                self._end = file.tell()
                yield entry
        if self._end < size:
            log.warning("%s: its last %d bytes were not written whole", self.path, size - self._end)
            os.ftruncate(self._file, self._end)

    def _begin(self) -> None:
        self.name = secrets.token_bytes(16)
        head = HEAD.pack(MAGIC, self.name, self.dimension, 0)[:-4]
        os.ftruncate(self._file, 0)
        self._end = self._write([head, struct.pack("<I", zlib.crc32(head))], 0)
        os.fsync(self._file)
        _sync_folder(self.path)

    def _read_head(self, head: bytes) -> None:
        magic, self.name, dimension, checksum = HEAD.unpack(head)
        if (magic, dimension, checksum) != (MAGIC, self.dimension, zlib.crc32(head[:-4])):
            raise Corrupt("it does not begin as an index of this store does")

    def _read(self, file: BinaryIO, size: int) -> Entry | None:
        """The next entry; None at the end, or where the last one is not there as a whole."""
        place = file.tell()
        if size - place < ENTRY.size:
            return None
        head = file.read(ENTRY.size)
        kind, count, version, checksum, own = ENTRY.unpack(head)
        if own != zlib.crc32(head[:-4]):
            raise Corrupt(f"at byte {place}")
        length = count * 8 + (count * 4 * self.dimension if kind == ADD else 0)
        if size - place - ENTRY.size < length:
            return None
        keys, rows = file.read(8 * count), file.read(length - 8 * count)
        if checksum != _sum(keys, rows):
            raise Corrupt(f"at byte {place}")
        if kind == KNOW:
            return Entry((), version=version)
        found = np.frombuffer(keys, "<i8").tolist()
        if kind == REMOVE:
            return Entry(found)
        return Entry(found, np.frombuffer(rows, "<f4").reshape(count, self.dimension))

    def append(self, entries: Sequence[Entry], *, sync: bool) -> None:
        """Write entries, to disk where `sync`; raises `OSError`, and then nothing of them stands."""
        parts = [part for entry in entries for part in entry.parts()]
        try:
            end = self._write(parts, self._end)
            if sync:
                os.fsync(self._file)
        except OSError:
            os.ftruncate(self._file, self._end)
            raise
        self._end = end
        self.added += sum(len(entry.keys) for entry in entries if entry.rows is not None)

    def _write(self, parts: list[bytes], place: int) -> int:
        data = memoryview(b"".join(parts))
        while data:
            written = os.pwrite(self._file, data, place)
            data, place = data[written:], place + written
        return place

    def move(self, path: Path) -> None:
        """Take another's place, for good."""
        os.fsync(self._file)
        self.path = self.path.rename(path)
        _sync_folder(path)

    def close(self) -> None:
        os.close(self._file)


def entries(keys: Sequence[int], rows: Matrix | None = None) -> list[Entry]:
    """Keys that came, with their rows, or went, in entries of a size that can be read at once."""
    return [
        Entry(keys[start : start + MOST], None if rows is None else rows[start : start + MOST])
        for start in range(0, len(keys), MOST)
    ]


def _locked(path: Path) -> int:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists() and os.path.samestat(os.fstat(file), path.stat()):
                return file  # and not one that was just put aside
        except BaseException:
            os.close(file)
            raise
        os.close(file)


def _sum(*parts: bytes) -> int:
    checksum = 0
    for part in parts:
        checksum = zlib.crc32(part, checksum)
    return checksum


def _sync_folder(path: Path) -> None:
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def put_aside(path: Path, reason: object) -> None:
    """Leave a damaged file to be looked at, under another name."""
    aside = path.with_name(f"{path.name}.corrupt-{time.time_ns() // 1_000_000}")
    path.rename(aside)
    log.error("%s is damaged (%s): it was renamed to %s, and is made anew", path, reason, aside.name)


# ------------------------------------------------------------ the graph


class _Summed:
    """A file, and the checksum of all that passed."""

    def __init__(self, file: BinaryIO, checksum: int) -> None:
        self.file = file
        self.checksum = checksum

    def write(self, data: bytes) -> int:
        self.checksum = zlib.crc32(data, self.checksum)
        return self.file.write(data)

    def read_all(self) -> int:
        while data := self.file.read(1 << 20):
            self.checksum = zlib.crc32(data, self.checksum)
        return self.checksum


def write_graph(path: Path, graph: faiss.IndexHNSWFlat, *, of: bytes) -> None:
    """Write a graph without its vectors, which are in the log of that name; raises `OSError`."""
    new = path.with_suffix(".graph.new")
    with open(new, "wb") as file:
        head = HEAD.pack(MAGIC, of, graph.ntotal, 0)[:-4]
        file.write(head + bytes(4))
        summed = _Summed(file, zlib.crc32(head))
        faiss.write_index(graph, faiss.PyCallbackIOWriter(summed.write), faiss.IO_FLAG_SKIP_STORAGE)
        file.seek(len(head))
        file.write(struct.pack("<I", summed.checksum))
        file.flush()
        os.fsync(file.fileno())
    new.rename(path)
    _sync_folder(path)


def read_graph(path: Path, *, of: bytes, nodes: int) -> Any:
    """The graph of the first of so many nodes; None where there is none of this log. Raises `Corrupt`."""
    if not path.exists():
        return None
    with open(path, "rb") as file:
        head = file.read(HEAD.size)
        if len(head) < HEAD.size:
            raise Corrupt("it is too short")
        magic, name, count, checksum = HEAD.unpack(head)
        if magic != MAGIC or checksum != _Summed(file, zlib.crc32(head[:-4])).read_all():
            raise Corrupt("its checksum is another")
        if name != of or count > nodes:
            return None  # it was of a log that is no more
        file.seek(HEAD.size)
        return faiss.read_index(faiss.PyCallbackIOReader(file.read))

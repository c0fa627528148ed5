"""Where files are kept: on this machine's disk, and in a bucket of a real S3 server on loopback."""

import asyncio
import hashlib
import logging
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import obstore
import pytest
from moto.server import ThreadedMotoServer

from llama_stack_lite.api.files import Files
from llama_stack_lite.config import StackConfig
from llama_stack_lite.errors import ConfigError, Unavailable
from llama_stack_lite.providers.files.local import Local
from llama_stack_lite.providers.files.s3 import S3
from llama_stack_lite.stack import Stack
from tests.conformance.files import FilesConformance

KEY, SECRET = "AKIAEXAMPLEEXAMPLE00", "very/secret/indeed"


def local(folder: Path) -> Local:
    return Local(Local.Config(folder=folder), stack=Stack(StackConfig()))


def put(provider: Files, name: str, source: Path) -> None:
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    asyncio.run(provider.put(name, source, digest=digest))


def read(provider: Files, name: str) -> bytes:
    async def scenario() -> bytes:
        return b"".join([piece async for piece in provider.read(name)])

    return asyncio.run(scenario())


def lying(folder: Path, part: str = "") -> list[Path]:
    """The files below a folder."""
    return [path for path in (folder / part).rglob("*") if path.is_file()]


class TestLocal(FilesConformance):
    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path) -> None:
        self.folder = tmp_path / "files"

    @asynccontextmanager
    async def provider(self) -> AsyncIterator[Files]:
        yield local(self.folder)
        assert lying(self.folder, "incoming") == []


@pytest.fixture(scope="module")
def bucket() -> Iterator[dict[str, Any]]:
    """What a distribution says of a bucket on a server of its own."""
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    assert httpx.put(f"{endpoint}/files").status_code == 200
    yield {
        "bucket": "files",
        "prefix": "some/where",
        "endpoint": endpoint,
        "access_key_id": KEY,
        "secret_access_key": SECRET,
        "allow_http": True,
    }
    server.stop()


class TestS3(FilesConformance):
    @pytest.fixture(autouse=True)
    def _bucket(self, bucket: dict[str, Any]) -> None:
        self.settings = bucket

    @asynccontextmanager
    async def provider(self) -> AsyncIterator[Files]:
        yield S3(S3.Config(**self.settings))


# ---------------------------------------------------------------- this machine's disk


def test_a_content_is_kept_once_for_all_its_names(tmp_path: Path) -> None:
    source, folder = tmp_path / "source", tmp_path / "files"
    source.write_bytes(b"shared")
    provider = local(folder)
    for name in ("file-1", "file-2"):
        put(provider, name, source)
    [content] = lying(folder, "by-digest")
    assert content.name == hashlib.sha256(b"shared").hexdigest()
    assert {path.stat().st_ino for path in lying(folder)} == {content.stat().st_ino}
    asyncio.run(provider.remove("file-1"))
    assert content.exists()
    asyncio.run(provider.remove("file-2"))
    assert lying(folder) == []


def test_a_damaged_content_is_not_shared(tmp_path: Path) -> None:
    source, folder = tmp_path / "source", tmp_path / "files"
    source.write_bytes(b"whole")
    provider = local(folder)
    put(provider, "file-1", source)
    provider.path("file-1").write_bytes(b"wh")
    put(provider, "file-2", source)
    assert read(provider, "file-2") == b"whole"
    put(provider, "file-1", source)
    assert read(provider, "file-1") == b"whole"


def test_what_crashes_left_is_tidied_when_it_is_old(tmp_path: Path) -> None:
    source, folder = tmp_path / "source", tmp_path / "files"
    source.write_bytes(b"x")
    provider = local(folder)
    put(provider, "file-1", source)
    provider.path("file-1").unlink()  # the content stays behind
    (folder / "incoming" / "half").mkdir()
    (folder / "incoming" / "half" / "file").write_bytes(b"h")

    async def names(older: float) -> list[str]:
        return [name async for name in provider.names(older=older)]

    assert asyncio.run(names(3600)) == [] and len(lying(folder)) == 2
    assert asyncio.run(names(-1)) == [] and lying(folder) == []


FULL = """
import asyncio, resource, sys
from pathlib import Path
from llama_stack_lite.errors import Unavailable
from tests.test_files_providers import local, put

resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
import signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
try:
    put(local(Path(sys.argv[1])), "file-1", Path(sys.argv[2]))
except Unavailable as error:
    print(error)
"""


def test_a_full_disk_is_told_and_nothing_half_is_kept(tmp_path: Path) -> None:
    """The limit on the size of files stands for a full disk: the write fails in its middle."""
    source, folder = tmp_path / "source", tmp_path / "files"
    source.write_bytes(bytes(3_000_000))
    found = subprocess.run(
        [sys.executable, "-c", FULL, str(folder), str(source)],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "cannot be kept" in found.stdout and "File too large" in found.stdout
    assert lying(folder) == []


def test_a_folder_that_cannot_be_made_is_told_at_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ConfigError, match="files: .* cannot be written: Not a directory"):
        local(tmp_path / "file" / "files")


def test_the_folder_is_the_owners_alone(tmp_path: Path) -> None:
    local(tmp_path / "files")
    assert os.stat(tmp_path / "files").st_mode & 0o077 == 0


# ---------------------------------------------------------------- a bucket


def test_objects_lie_below_the_prefix(bucket: dict[str, Any], tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"x")
    put(S3(S3.Config(**bucket)), "file-below", source)
    bare = S3(S3.Config(**{**bucket, "prefix": ""}))
    assert obstore.get(bare.bucket, "some/where/file-below").bytes() == b"x"


@pytest.mark.parametrize("change", [{"endpoint": "http://127.0.0.1:9"}, {"bucket": "no-such-bucket"}])
def test_a_bucket_that_fails_is_told_without_a_secret(
    bucket: dict[str, Any], change: dict[str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"x")
    config = S3.Config(**{**bucket, **change, "timeout": 2})
    with pytest.raises(Unavailable, match=config.bucket) as caught:
        put(S3(config), "file-1", source)
    for told in (str(caught.value), caplog.text, repr(config)):
        assert SECRET not in told and KEY not in told

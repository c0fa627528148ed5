"""/v1/files: OpenAI's own package sends, lists and reads files, and its types validate what comes back."""

import asyncio
import hashlib
import os
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import BadRequestError, NotFoundError, OpenAI
from openai.types import FileDeleted, FileObject
from sqlalchemy import update

from llama_stack_lite import server, uploads
from llama_stack_lite.api.files import FileExpiry
from llama_stack_lite.config import StackConfig
from llama_stack_lite.config import load as load_config
from llama_stack_lite.errors import ConfigError, NotFound, Unavailable
from llama_stack_lite.forms import PARTS, Upload, plain_name
from llama_stack_lite.stack import Stack
from llama_stack_lite.state import files
from llama_stack_lite.state.paging import Paging
from llama_stack_lite.state.tables import files as table
from tests.support.databases import KINDS, database
from tests.support.serving import Running, serve

LIMIT = 3_000_000
HOUR = {"anchor": "created_at", "seconds": 3600}


def config(storage: str, folder: Path, **sections: Any) -> StackConfig:
    places = {"disk": {"provider": "local", "folder": str(folder)}}
    limits = {"max_file_bytes": LIMIT}
    fields = {"storage": storage, "files": places, "documents": limits, "server": {"max_body_size": 2048}}
    return StackConfig.model_validate({**fields, **sections})


class Place:
    """A server that keeps files, its folder, and OpenAI's client of it."""

    def __init__(self, running: Running, folder: Path) -> None:
        self.running = running
        self.folder = folder
        self.url = f"{running.url}/v1/files"
        self.client = running.clients.enter_context(
            OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0)
        )

    def lying(self) -> int:
        """How many files of any kind lie on the disk: two for each that is kept."""
        return sum(path.is_file() for path in self.folder.rglob("*"))


@pytest.fixture(scope="module", params=KINDS)
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("place")
    with database(request.param, folder) as storage, serve(config(storage, folder / "files")) as running:
        yield Place(running, folder / "files")


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """On SQLite alone, for what no database has to do with."""
    folder = tmp_path_factory.mktemp("one")
    with serve(config(f"sqlite:///{folder}/state.db", folder / "files")) as running:
        yield Place(running, folder / "files")


# ---------------------------------------------------------------- with OpenAI's package


def test_a_file_from_its_upload_to_its_end(place: Place) -> None:
    api = place.client.files
    content = bytes(range(256)) * 4000 + b"\r\n--x\r\n"
    made = api.create(file=("notes \u65e5\u672c.pdf", content), purpose="assistants")
    FileObject.model_validate(made.model_dump(), strict=True)
    assert made.id.startswith("file-") and len(made.id) == 53
    assert (made.bytes, made.filename, made.purpose) == (len(content), "notes \u65e5\u672c.pdf", "assistants")
    assert made.status == "processed" and made.expires_at is None and abs(made.created_at - time.time()) < 60
    assert api.retrieve(made.id) == made
    assert made in list(api.list())
    assert api.content(made.id).read() == content
    gone = api.delete(made.id)
    assert FileDeleted.model_validate(gone.model_dump(), strict=True).deleted and gone.id == made.id
    for call in (api.retrieve, api.content, api.delete):
        with pytest.raises(NotFoundError, match=made.id):
            call(made.id)


def test_the_json_is_openais(place: Place) -> None:
    kept = place.client.files.create(file=("a", b"x"), purpose="user_data").id
    found = httpx.get(f"{place.url}/{kept}").json()
    expected = {"id", "object", "bytes", "created_at", "filename", "purpose", "status"}
    assert set(found) == expected and found["object"] == "file"
    until = place.client.files.create(file=("a", b"x"), purpose="batch", expires_after=HOUR)  # type: ignore[arg-type]
    assert until.expires_at == until.created_at + 3600
    listed = httpx.get(place.url, params={"purpose": "batch"}).json()
    assert listed == {
        "object": "list",
        "data": [
            {
                **found,
                "id": until.id,
                "created_at": until.created_at,
                "expires_at": until.expires_at,
                "purpose": "batch",
            }
        ],
        "first_id": until.id,
        "last_id": until.id,
        "has_more": False,
    }


def test_lists_come_in_pages_by_time(place: Place) -> None:
    api = place.client.files
    made = [api.create(file=(f"{n}", b"x"), purpose="evals").id for n in range(5)]
    assert [each.id for each in api.list(purpose="evals")] == made[::-1]
    for size in (1, 2, 5):  # the package asks for page after page
        paged = api.list(purpose="evals", order="asc", limit=size)
        assert paged.has_more == (size < 5)
        assert [each.id for each in paged] == made
    assert [each.id for each in api.list(purpose="evals", after=made[3]).data] == made[2::-1]
    assert api.list(purpose="fine-tune").data == []
    empty = httpx.get(place.url, params={"purpose": "fine-tune"}).json()
    assert (empty["first_id"], empty["last_id"], empty["has_more"]) == (None, None, False)


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ({"limit": 0}, "limit"),
        ({"limit": 10_001}, "limit"),
        ({"order": "up"}, "order"),
        ({"purpose": "other"}, "purpose"),
        ({"after": "file-none"}, "after"),
        ({"after": "a\x00b"}, "after"),
    ],
)
def test_a_list_that_cannot_be_is_refused(place: Place, query: dict[str, Any], param: str) -> None:
    found = httpx.get(place.url, params=query)
    assert found.status_code == 400 and found.json()["error"]["param"] == param


@pytest.mark.parametrize("name", ["file-none", "%00", "..%2f..%2fetc%2fpasswd", "x" * 300, "%e2%82%ac"])
@pytest.mark.parametrize("way", ["", "/content"])
def test_an_unknown_file_is_not_found(place: Place, name: str, way: str) -> None:
    assert httpx.get(f"{place.url}/{name}{way}").status_code == 404


def test_content_is_never_a_page(one: Place) -> None:
    kept = one.client.files.create(file=("page.html", b"<script>"), purpose="user_data").id
    found = httpx.get(f"{one.url}/{kept}/content")
    assert found.headers["content-type"] == "application/octet-stream"
    assert found.headers["content-disposition"] == "attachment"
    assert found.headers["x-content-type-options"] == "nosniff"
    assert found.headers["content-length"] == "8"


def test_names_are_texts_and_no_paths(one: Place) -> None:
    api = one.client.files
    for name, kept in (
        ("/etc/passwd", "passwd"),
        ("..\\..\\x.txt", "x.txt"),
        ("a\x00\x07b", "ab"),
        ("..", ".."),
    ):
        assert plain_name(name) == kept
    assert api.create(file=("../../x", b"y"), purpose="user_data").filename == "x"
    assert plain_name("\x00/") == "upload"
    with pytest.raises(BadRequestError, match="255 characters"):
        api.create(file=("x" * 256, b"y"), purpose="user_data")


# ---------------------------------------------------------------- forms

GOOD: dict[str, Any] = {"purpose": (None, "user_data"), "file": ("f", b"content")}


@pytest.mark.parametrize(
    ("change", "param", "words"),
    [
        ({"file": None}, "file", "no part `file`"),
        ({"file": (None, "text")}, "file", "no part `file`"),
        ({"file": ("f", b"")}, "file", "empty"),
        ({"purpose": None}, "purpose", "missing"),
        ({"purpose": (None, "other")}, "purpose", "`user_data`"),
        ({"expires_after[anchor]": (None, "created_at")}, "expires_after.seconds", "required"),
        ({"expires_after[seconds]": (None, "3600")}, "expires_after.anchor", "required"),
        (
            {"expires_after[anchor]": (None, "now"), "expires_after[seconds]": (None, "3600")},
            "expires_after.anchor",
            "created_at",
        ),
        (
            {"expires_after[anchor]": (None, "created_at"), "expires_after[seconds]": (None, "3599")},
            "expires_after.seconds",
            "3600",
        ),
        ({"colour": (None, "red")}, "colour", "no such part"),
    ],
)
def test_a_form_that_cannot_be_is_refused(one: Place, change: dict[str, Any], param: str, words: str) -> None:
    before = one.lying()
    parts = {name: part for name, part in {**GOOD, **change}.items() if part}
    found = httpx.post(one.url, files=parts)
    error = found.json()["error"]
    assert found.status_code == 400 and error["param"] == param and words in error["message"], error
    assert one.lying() == before


def part(head: bytes, body: bytes = b"y") -> bytes:
    return b"--x\r\n" + head + b"\r\n\r\n" + body + b"\r\n"


FILE = part(b'content-disposition: form-data; name="file"; filename="f"')
PURPOSE = part(b'content-disposition: form-data; name="purpose"', b"user_data")
TEXT = part(b'content-disposition: form-data; name="a"')
END = b"--x--\r\n"
NESTED = part(
    b'content-disposition: form-data; name="file"; filename="f"\r\ncontent-type: multipart/mixed; boundary=z',
    b"--z\r\n\r\ninner\r\n--z--",
)


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("application/json", b"{}"),
        ("multipart/form-data", FILE + END),
        ("multipart/form-data; boundary=" + "x" * 300, FILE + END),
        ("multipart/form-data; boundary=x", b""),
        ("multipart/form-data; boundary=x", b"garbage"),
        ("multipart/form-data; boundary=x", FILE + PURPOSE),  # cut off
        ("multipart/form-data; boundary=x", FILE + FILE + PURPOSE + END),
        ("multipart/form-data; boundary=x", FILE + PURPOSE + TEXT * PARTS + END),
        ("multipart/form-data; boundary=x", part(b"x: " + b"y" * 5000) + FILE + PURPOSE + END),
        ("multipart/form-data; boundary=x", part(b"\r\n".join([b"x: y"] * 20)) + FILE + PURPOSE + END),
        ("multipart/form-data; boundary=x", part(TEXT[5:-5].split(b"\r\n")[0], b"z" * 5000) + FILE + END),
        ("multipart/form-data; boundary=x", part(b"no header") + FILE + PURPOSE + END),
    ],
)
def test_no_form_harms(one: Place, kind: str, body: bytes) -> None:
    before = one.lying()
    found = httpx.post(one.url, content=body, headers={"content-type": kind})
    assert found.status_code == 400, found.text
    assert one.lying() == before


def test_a_form_within_a_form_is_a_file_as_it_is(one: Place) -> None:
    kind = {"content-type": 'multipart/form-data; boundary="x"'}
    made = httpx.post(one.url, content=b"\r\n" + NESTED + PURPOSE + END + b"epilogue", headers=kind).json()
    assert httpx.get(f"{one.url}/{made['id']}/content").content == b"--z\r\n\r\ninner\r\n--z--"


def test_a_file_may_be_larger_than_other_bodies_and_has_its_own_limit(one: Place) -> None:
    api = one.client.files
    assert (
        httpx.post(f"{one.running.url}/v1/conversations", json={"metadata": {"a": "x" * 3000}}).status_code
        == 413
    )
    assert api.create(file=("f", bytes(LIMIT)), purpose="user_data").bytes == LIMIT
    before = one.lying()
    for extra in (1, 500_000):  # found when it is read, and told in the header
        found = httpx.post(one.url, files={**GOOD, "file": ("f", bytes(LIMIT + extra))})
        error = found.json()["error"]
        assert found.status_code == 413 and error["param"] == "file"
        assert str(LIMIT) in error["message"] and "documents.max_file_bytes" in error["message"]

    kind = {"content-type": "multipart/form-data; boundary=x"}
    late = [FILE[:-3], *[bytes(100_000)] * 300]  # a client that looks for an answer at its end only
    assert httpx.post(one.url, content=iter(late), headers=kind).status_code == 413
    assert one.lying() == before


def test_a_client_that_never_ends_is_cut_off(one: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "LINGER", 0.5)
    before = one.lying()
    host, _, port = one.running.url.removeprefix("http://").partition(":")
    head = f"POST /v1/files HTTP/1.1\r\nhost: {host}\r\ntransfer-encoding: chunked\r\n"
    head += "content-type: multipart/form-data; boundary=x\r\n\r\n"
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(head.encode() + f"{len(FILE[:-3]):x}\r\n".encode() + FILE[:-3] + b"\r\n")
        end = time.monotonic() + 30
        with pytest.raises(ConnectionError):
            while time.monotonic() < end:
                connection.sendall(b"186a0\r\n" + bytes(100_000) + b"\r\n")
    assert one.lying() == before


def test_a_client_that_hangs_up_leaves_nothing(one: Place) -> None:
    def temporary() -> set[Path]:
        return set(Path(tempfile.gettempdir()).glob("llama-lite-*"))

    before, kept = temporary(), one.lying()
    host, _, port = one.running.url.removeprefix("http://").partition(":")
    head = f"POST /v1/files HTTP/1.1\r\nhost: {host}\r\ncontent-length: 2900000\r\n"
    head += "content-type: multipart/form-data; boundary=x\r\n\r\n"
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(head.encode() + FILE[:-3] + bytes(2_000_000))
        until = time.monotonic() + 30
        while not temporary() - before and time.monotonic() < until:
            time.sleep(0.01)
        assert temporary() - before, "nothing was being taken in"
    while temporary() - before and time.monotonic() < until:
        time.sleep(0.01)
    assert not temporary() - before and one.lying() == kept


def test_uploads_side_by_side_do_not_mix(place: Place) -> None:
    contents = {f"{n}": os.urandom(300_000) for n in range(8)}
    ids: dict[str, str] = {}

    def send(name: str) -> None:
        ids[name] = place.client.files.create(file=(name, contents[name]), purpose="user_data").id

    threads = [threading.Thread(target=send, args=(name,)) for name in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name, content in contents.items():
        assert httpx.get(f"{place.url}/{ids[name]}/content").content == content


# ---------------------------------------------------------------- how files end


def run(url: str, folder: Path, work: Any) -> Any:
    """Run `work(stack)` in a stack of its own, without the task that sweeps."""

    async def scenario() -> Any:
        stack = await Stack.build(config(url, folder))
        await stack.sweeping.aclose()
        try:
            return await work(stack)
        finally:
            await stack.aclose()

    return asyncio.run(scenario())


@pytest.fixture(params=KINDS)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    with database(request.param, tmp_path) as url:
        yield url


async def kept(stack: Stack, content: bytes = b"content") -> str:
    """The id of a new file, which ends in an hour."""
    with tempfile.NamedTemporaryFile() as disk:
        disk.write(content)
        disk.flush()
        upload = Upload(Path(disk.name), "f", len(content), hashlib.sha256(content).hexdigest())
        expiry = FileExpiry(anchor="created_at", seconds=3600)
        return (await uploads.keep(stack, upload, purpose="user_data", expiry=expiry)).id


def lying(folder: Path) -> int:
    return sum(path.is_file() for path in folder.rglob("*"))


def test_what_has_expired_is_not_found_and_then_swept(url: str, tmp_path: Path) -> None:
    async def work(stack: Stack) -> None:
        first, second = await kept(stack), await kept(stack, b"other")
        await uploads.sweep(stack)
        assert lying(tmp_path / "f") == 4
        past = update(table).where(table.c.id == first).values(expires_at=time.time() - 1)
        await stack.store.write(lambda connection: connection.execute(past))
        with pytest.raises(NotFound):
            await files.get(stack.store, first)
        page, _ = await files.listed(stack.store, Paging(9, "asc", None))
        assert [each.id for each in page] == [second]
        assert lying(tmp_path / "f") == 4
        await uploads.sweep(stack)
        assert lying(tmp_path / "f") == 2
        assert await files.known(stack.store, [first, second]) == {second}

    run(url, tmp_path / "f", work)


def test_bytes_without_a_row_are_swept_when_they_are_old(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work(stack: Stack) -> None:
        name = await kept(stack)
        source = tmp_path / "orphan"
        source.write_bytes(b"orphan")
        await stack.files["disk"].put("file-orphan", source, digest=hashlib.sha256(b"orphan").hexdigest())
        await uploads.sweep_orphans(stack)
        assert lying(tmp_path / "f") == 4  # it may be being sent
        monkeypatch.setattr(uploads, "ORPHANED", -1.0)
        await uploads.sweep_orphans(stack)
        assert lying(tmp_path / "f") == 2
        async with uploads.local_copy(stack, name) as path:
            assert path.read_bytes() == b"content"

    run(url, tmp_path / "f", work)


def test_the_server_sweeps_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "EVERY", 0.05)
    storage, folder = f"sqlite:///{tmp_path}/state.db", tmp_path / "f"

    async def old(stack: Stack) -> None:
        await kept(stack)
        past = update(table).values(expires_at=1)
        await stack.store.write(lambda connection: connection.execute(past))

    run(storage, folder, old)
    with serve(config(storage, folder)):
        until = time.monotonic() + 30
        while lying(folder) and time.monotonic() < until:
            time.sleep(0.02)
    assert lying(folder) == 0


def test_a_file_is_there_after_a_restart_and_without_its_place_it_is_told(tmp_path: Path) -> None:
    storage, folder = f"sqlite:///{tmp_path}/state.db", tmp_path / "f"
    name = run(storage, folder, kept)

    async def read(stack: Stack) -> bytes:
        async with uploads.local_copy(stack, name) as path:
            return path.read_bytes()

    assert run(storage, folder, read) == b"content"
    elsewhere = {"other": {"provider": "local", "folder": str(tmp_path / "g")}}
    with serve(config(storage, folder, files=elsewhere)) as running:
        found = httpx.get(f"{running.url}/v1/files/{name}/content")
        assert found.status_code == 503 and "`disk`" in found.json()["error"]["message"]


def test_a_damaged_file_is_told(tmp_path: Path) -> None:
    async def work(stack: Stack) -> None:
        name = await kept(stack)
        provider: Any = stack.files["disk"]
        provider.path(name).write_bytes(b"con")
        with pytest.raises(Unavailable, match="it has 3 bytes, and had 7"):
            async with uploads.local_copy(stack, name):
                raise AssertionError("the copy is not whole")
        row = await files.row(stack.store, name)
        with pytest.raises(Unavailable, match="damaged"):
            [piece async for piece in uploads.content(stack, row)]

    run(f"sqlite:///{tmp_path}/state.db", tmp_path / "f", work)


# ---------------------------------------------------------------- distributions


def test_without_a_place_the_answer_says_what_to_add(tmp_path: Path) -> None:
    with serve(StackConfig(storage=f"sqlite:///{tmp_path}/state.db")) as running:
        for found in (
            httpx.get(f"{running.url}/v1/files"),
            httpx.post(f"{running.url}/v1/files", files=GOOD),
        ):
            assert found.status_code == 400 and "provider: local" in found.json()["error"]["message"]


def test_new_files_go_to_the_default_place(tmp_path: Path) -> None:
    places = {name: {"provider": "local", "folder": str(tmp_path / name)} for name in ("a", "b")}
    for defaults, where in (({}, "a"), ({"files": "b"}, "b")):
        settings = config(f"sqlite:///{tmp_path}/state.db", tmp_path, files=places, defaults=defaults)
        with serve(settings) as running:
            before = lying(tmp_path / where)
            assert httpx.post(f"{running.url}/v1/files", files=GOOD).status_code == 200
            assert lying(tmp_path / where) == before + 2


def test_a_default_that_is_no_place_is_told_at_start(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("storage: sqlite\nfiles: {a: {provider: local}}\ndefaults: {files: b}\n")
    with pytest.raises(ConfigError, match=r"3:19 defaults.files: there is no `b` under `files`"):
        load_config([str(tmp_path / "x.yaml")])

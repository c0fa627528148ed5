"""Containers over HTTP: OpenAI's own client makes them, fills them, and reads what code wrote."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import openai
import pytest
import uvicorn
from fastapi import FastAPI

from llama_stack_lite.api.containers import Containers
from llama_stack_lite.api.tools import Tools
from llama_stack_lite.config import StackConfig
from llama_stack_lite.errors import InvalidRequest
from llama_stack_lite.routes.containers import uploaded
from llama_stack_lite.server import create_app
from llama_stack_lite.stack import Stack

CODE: dict[str, Any] = {"code": {"provider": "code-interpreter", "max_bytes": 8, "containers": 9}}


class Served:
    """A server that listens, and the loop that it runs in."""

    def __init__(self, app: FastAPI, url: str) -> None:
        self.app = app
        self.url = url
        self.client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)

    def run(self, code: str, session: str) -> str:
        """What code answers that a model had run; the loop of the server's thread runs it."""
        stack: Stack = self.app.state.stack
        calling = stack.tools["code"].call("python", {"code": code}, session=session)
        found = asyncio.run_coroutine_threadsafe(calling, self.app.state.loop).result(30)
        return found.text


@contextmanager
def served(tools: dict[str, Any], **sections: Any) -> Iterator[Served]:
    app = create_app(StackConfig.model_validate({"tools": tools, **sections}))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2))

    async def run(listener: socket.socket) -> None:
        app.state.loop = asyncio.get_running_loop()
        await server.serve(sockets=[listener])

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=lambda: asyncio.run(run(listener)))
        thread.start()
        try:
            while not server.started:
                assert thread.is_alive(), "the server did not start"
                thread.join(0.01)
            found = Served(app, f"http://127.0.0.1:{listener.getsockname()[1]}")
            with found.client:
                yield found
        finally:
            server.should_exit = True
            thread.join(30)


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with served(CODE) as found:
        yield found


def test_a_container_from_its_making_to_its_end(server: Served) -> None:
    api = server.client.containers
    made = api.create(name="mine")
    assert (made.name, made.object, made.status) == ("mine", "container", "running")
    assert made.expires_after and made.expires_after.minutes == 20
    assert api.retrieve(made.id).id == made.id
    assert made.id in [each.id for each in api.list()]
    assert api.list(name="no such").data == []
    api.delete(made.id)
    with pytest.raises(openai.NotFoundError):
        api.retrieve(made.id)
    with pytest.raises(openai.NotFoundError):
        api.delete(made.id)


def test_files_go_in_and_what_code_wrote_comes_out(server: Served) -> None:
    container = server.client.containers.create(name="files").id
    api = server.client.containers.files
    data = bytes(range(256)) * 100 + b"\r\n--x\r\n"
    sent = api.create(container, file=("in naïve.bin", data))
    assert (sent.path, sent.bytes, sent.source) == ("/mnt/data/in naïve.bin", len(data), "user")
    assert sent.container_id == container and sent.object == "container.file"
    assert (
        server.run("open('out.txt', 'w').write(str(len(open('in naïve.bin', 'rb').read())))", container)
        == "5\n"
    )
    found = {file.path: file for file in api.list(container)}
    assert set(found) == {"/mnt/data/in naïve.bin", "/mnt/data/out.txt"}
    out = found["/mnt/data/out.txt"]
    assert out.source == "assistant"
    assert api.retrieve(out.id, container_id=container).model_dump() == out.model_dump()
    assert api.content.retrieve(out.id, container_id=container).read() == str(len(data)).encode()
    assert api.content.retrieve(sent.id, container_id=container).read() == data
    api.delete(out.id, container_id=container)
    with pytest.raises(openai.NotFoundError):
        api.retrieve(out.id, container_id=container)


def test_content_is_never_a_page(server: Served) -> None:
    container = server.client.containers.create(name="pages").id
    file = server.client.containers.files.create(container, file=("page.html", b"<script>"))
    found = httpx.get(f"{server.url}/v1/containers/{container}/files/{file.id}/content")
    assert found.headers["content-type"] == "application/octet-stream"
    assert found.headers["content-disposition"] == "attachment"
    assert found.headers["x-content-type-options"] == "nosniff"


def test_a_container_of_a_conversation_is_read_by_its_id_and_not_listed(server: Served) -> None:
    text = server.run("open('f', 'w').write('1')", "a conversation")
    assert text == "1\n"
    provider: Tools = server.app.state.stack.tools["code"]
    assert isinstance(provider, Containers)
    files = asyncio.run_coroutine_threadsafe(provider.files("a conversation"), server.app.state.loop).result(
        9
    )
    api = server.client.containers
    container = files[0].container_id
    assert api.files.content.retrieve(files[0].id, container_id=container).read() == b"1"
    assert container not in [each.id for each in api.list()]


def test_lists_come_in_pages(server: Served) -> None:
    container = server.client.containers.create(name="pages").id
    api = server.client.containers.files
    for number in range(5):
        api.create(container, file=(f"{number}", b"x"))
    first = api.list(container, limit=2, order="asc")
    assert len(first.data) == 2 and first.has_more
    assert len(list(api.list(container, limit=2, order="asc"))) == 5
    with pytest.raises(openai.BadRequestError, match="after"):
        api.list(container, after="cfile_none")
    ids = [server.client.containers.create(name="two").id for _ in range(2)]
    listed = [each.id for each in server.client.containers.list(name="two", limit=1)]
    assert set(listed) == set(ids)


@pytest.mark.parametrize("name", ["/etc/passwd", "../../x", "a\\b\\c"])
def test_of_a_path_the_last_part_is_the_name(server: Served, name: str) -> None:
    container = server.client.containers.create(name="names").id
    sent = server.client.containers.files.create(container, file=(name, b"x"))
    assert sent.path == "/mnt/data/" + name.replace("\\", "/").split("/")[-1]


def test_what_cannot_be_is_refused(server: Served) -> None:
    container = server.client.containers.create(name="full").id
    url = f"{server.url}/v1/containers/{container}/files"
    for form in (
        httpx.post(url, json={"file_id": "file-1"}),  # nothing is kept here that could be copied
        httpx.post(url, files={"file_id": (None, b"file-1")}),
        httpx.post(url, json={"file": "x"}),
    ):
        assert form.status_code == 400 and form.json()["error"]["param"] == "file_id"
    assert httpx.post(url, files={"other": ("x", b"y")}).json()["error"]["param"] == "file"
    assert httpx.post(url, files={"file": ("..", b"y")}).json()["error"]["param"] == "file"
    long = httpx.post(url, files={"file": ("x", bytes(9 * 1024 * 1024))})
    assert long.status_code == 400 and "8 MiB" in long.text
    assert httpx.post(f"{server.url}/v1/containers", json={"name": "x", "file_ids": ["f"]}).status_code == 400
    for method, path in (
        ("GET", "cntr_none"),
        ("GET", f"{container}/files/none"),
        ("POST", "cntr_none/files"),
    ):
        found = httpx.request(method, f"{server.url}/v1/containers/{path}")
        assert found.status_code == 404 and container not in found.text


def test_where_nothing_runs_code_the_answer_says_so() -> None:
    with served({}) as server, pytest.raises(openai.BadRequestError, match="provider: code-interpreter"):
        server.client.containers.create(name="x")


def test_where_the_tool_is_off_the_answer_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with served(CODE) as server, pytest.raises(openai.InternalServerError) as caught:
        server.client.containers.create(name="x")
    assert caught.value.status_code == 503 and "apt-get install bubblewrap" in str(caught.value)


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("", b""),
        ("text/plain", b"x"),
        ("multipart/form-data", b"--x\r\n\r\n--x--"),
        ("multipart/form-data; boundary=x", b""),
        ("multipart/form-data; boundary=x", b"--x--"),
        (
            "multipart/form-data; boundary=x",
            b"--x\r\ncontent-disposition: form-data; name=file\r\n\r\ny\r\n--x--",
        ),
        (
            "multipart/form-data; boundary=x",
            b'--x\r\ncontent-disposition: form-data; name="file"; filename="f"\r\n',
        ),
        ("multipart/form-data; boundary=\u00e9", b"--x\r\n\r\n--x--"),
        (
            "multipart/mixed; boundary=x",
            b"--x\r\ncontent-disposition: form-data; name=file; filename=f\r\n\r\ny\r\n--x--",
        ),
    ],
)
def test_a_form_that_is_none_is_refused(content_type: str, body: bytes) -> None:
    with pytest.raises(InvalidRequest):
        uploaded(content_type, body)


@pytest.mark.parametrize("data", [b"", b"\r\n", b"y--x", b"a\r\n--y\r\nb", b"\r\n\r\n", bytes(range(256))])
@pytest.mark.parametrize("preamble", [b"", b"ignored\r\n"])
def test_a_file_is_read_to_the_byte(data: bytes, preamble: bytes) -> None:
    head = b'content-disposition: form-data; name="file"; filename="f.bin"\r\ncontent-type: a/b\r\n\r\n'
    other = b'--x\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nnone\r\n'
    body = preamble + other + b"--x\r\n" + head + data + b"\r\n--x--\r\n"
    assert uploaded("multipart/form-data; boundary=x", body) == ("f.bin", data)


def test_files_are_judged_on_their_way_in_and_out() -> None:
    guard = {
        "safety": {"bird": {"provider": "canary", "words": ["kingfisher"]}},
        "enforce": {"input": ["bird"], "output": ["bird"]},
    }
    with served(CODE, **guard) as server:
        containers = server.client.containers
        made = containers.create(name="one")
        with pytest.raises(openai.BadRequestError, match="safety policy"):
            containers.files.create(made.id, file=("a.txt", b"a kingfisher"))
        with pytest.raises(openai.BadRequestError, match="cannot see|no shield"):
            containers.files.create(made.id, file=("a.bin", b"\xff\xfe"))
        assert list(containers.files.list(made.id)) == []
        server.run("open('/mnt/data/b.txt', 'w').write('king' + 'fisher')", made.id)
        [file] = containers.files.list(made.id)
        with pytest.raises(openai.BadRequestError, match="safety policy"):
            containers.files.content.retrieve(file.id, container_id=made.id)

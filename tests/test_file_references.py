"""Files that are named where a model reads them, or code: in messages, and in containers."""

import base64
from pathlib import Path
from typing import Any

import pytest

from llama_stack_lite.agent.reading import image_type
from llama_stack_lite.api.containers import Containers
from llama_stack_lite.stack import Stack
from tests.support.responding import Responding, config, run, texts

PNG = b"\x89PNG\r\n\x1a\n" + b"pixels"
VECTORS = {"vector_io": {"index": {"provider": "faiss"}}}
GUARD = {
    "safety": {"bird": {"provider": "canary", "words": ["kingfisher"]}},
    "enforce": {"input": ["bird"], "output": ["bird"]},
}


def settings(folder: Path, *replies: Any, **sections: Any) -> Any:
    files = {"disk": {"provider": "local", "folder": str(folder / "files")}}
    return config(folder, *replies, files=files, **sections)


async def sent(server: Responding, name: str, content: bytes) -> str:
    """The id of a file that is uploaded."""
    parts: Any = {"file": (name, content), "purpose": (None, "user_data")}
    reply = await server.http.post("/v1/files", files=parts)
    assert reply.status_code == 200, reply.text
    found: str = reply.json()["id"]
    return found


def message(**part: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "input_text", "text": "see"}, part]}]


def url(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def read_last(server: Responding) -> Any:
    """The second part of the last message that the model read."""
    return server.asked()[-1][-1]["content"][1]


# ---------------------------------------------------------------- messages


def test_an_image_is_seen_by_its_id(tmp_path: Path) -> None:
    async def work(server: Responding) -> None:
        image = await sent(server, "no name says it", PNG)
        first, _ = await server.both(input=message(type="input_image", file_id=image, detail="low"))
        assert read_last(server)["image_url"] == {"url": url("image/png", PNG), "detail": "low"}
        items = await server.http.get(f"/v1/responses/{first['id']}/input_items")
        kept = items.json()["data"][0]["content"][1]
        assert (kept["file_id"], kept["image_url"]) == (image, None)  # as it was sent
        await server.whole(input="and now?", previous_response_id=first["id"])
        seen = [part for said in server.asked()[-1] for part in said["content"] if isinstance(part, dict)]
        assert [part["image_url"]["url"] for part in seen if part["type"] == "image_url"] == [
            url("image/png", PNG)
        ]
        await server.http.delete(f"/v1/files/{image}")
        error = await server.refused(input="and now?", previous_response_id=first["id"])
        assert error["status"] == 404 and image in error["message"] and error["param"] == "input"

    run(settings(tmp_path, "a", "b", "c", "d"), work)


def test_an_image_that_a_function_answers_is_seen(tmp_path: Path) -> None:
    async def work(server: Responding) -> None:
        image = await sent(server, "x", PNG)
        output = [{"type": "input_image", "file_id": image}]
        call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
        await server.whole(input=[call, {"type": "function_call_output", "call_id": "c", "output": output}])
        assert server.asked()[-1][-1]["content"][0]["image_url"]["url"] == url("image/png", PNG)

    run(settings(tmp_path, "a"), work)


@pytest.mark.parametrize(
    ("start", "kind"),
    [
        (PNG, "image/png"),
        (b"\xff\xd8\xff\xe0", "image/jpeg"),
        (b"GIF89a", "image/gif"),
        (b"RIFF\x00\x00\x00\x00WEBPVP8 ", "image/webp"),
        (b"RIFF\x00\x00\x00\x00WAVE", None),
        (b"<svg", None),
        (b"", None),
    ],
)
def test_what_an_image_is_its_first_bytes_say(start: bytes, kind: str | None) -> None:
    assert image_type(start) == kind


def test_a_document_is_read_as_its_text(tmp_path: Path) -> None:
    page = b"<html><body><h1>Birds</h1><p>The heron waits by the river until a fish comes.</p></body></html>"

    async def work(server: Responding) -> None:
        file = await sent(server, "birds.html", page)
        for part in (
            {"file_id": file},
            {"file_data": url("text/html", page), "filename": "birds.html"},
            {"file_data": base64.b64encode(page).decode(), "filename": "birds.html"},
        ):
            await server.whole(input=message(type="input_file", **part))
            found = read_last(server)
            assert found["type"] == "text" and found["text"].startswith("The file `birds.html`:\n\n")
            assert "# Birds" in found["text"] and "The heron waits" in found["text"]

    run(settings(tmp_path, "a", "b", "c", **VECTORS), work)


def test_a_document_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    async def work(server: Responding) -> None:
        broken = await sent(server, "a.pdf", b"%PDF-1.7\nbroken")
        for part, words in (
            ({"file_id": broken}, "a.pdf"),
            ({"file_data": "data:application/pdf,plain"}, "base64"),
            ({"file_data": "not base64"}, "base64"),
            ({"file_id": "file-none"}, "file-none"),
        ):
            error = await server.refused(input=message(type="input_file", **part))
            assert error["param"] == "input" and words in error["message"], error
        text = await sent(server, "a.txt", b"words")
        error = await server.refused(input=message(type="input_image", file_id=text))
        assert "no PNG, JPEG, GIF or WebP" in error["message"]

    run(settings(tmp_path, **VECTORS), work)


def test_what_is_too_large_together_is_refused(tmp_path: Path) -> None:
    limits = {"documents": {"max_text_bytes": 2000}, "server": {"max_body_size": 4000}}

    async def work(server: Responding) -> None:
        words = await sent(server, "a.txt", b"some words " * 120)
        part = {"type": "input_file", "file_id": words}
        error = await server.refused(input=[{"role": "user", "content": [part, part]}])
        assert "documents.max_text_bytes" in error["message"]
        image = await sent(server, "a.png", PNG + bytes(2500))
        part = {"type": "input_image", "file_id": image}
        error = await server.refused(input=[{"role": "user", "content": [part, part]}])
        assert "at most 1486 are taken" in error["message"]

    run(settings(tmp_path, **limits, **VECTORS), work)


def test_without_vector_io_a_document_is_handed_on_to_a_model_that_reads_it(tmp_path: Path) -> None:
    async def work(server: Responding) -> None:
        file = await sent(server, "birds.html", b"<p>heron</p>")
        await server.whole(input=message(type="input_file", file_id=file))
        data = url("application/octet-stream", b"<p>heron</p>")
        assert read_last(server) == {"type": "file", "file": {"file_data": data, "filename": "birds.html"}}

    run(settings(tmp_path, "a"), work)


def test_what_a_document_says_is_judged(tmp_path: Path) -> None:
    async def work(server: Responding) -> None:
        flagged = await sent(server, "a.txt", b"a kingfisher flew")
        for background in (False, True):
            found = await server.whole(
                input=message(type="input_file", file_id=flagged), background=background
            )
            assert found["status"] == "incomplete" and found["safety"]["touchpoint"] == "input"
        named = await sent(server, "kingfisher.txt", b"a bird flew")
        found = await server.whole(input=message(type="input_file", file_id=named))
        assert found["status"] == "incomplete"
        assert server.scripted.requests == []
        plain = await sent(server, "b.txt", b"a heron flew")
        assert texts(await server.whole(input=message(type="input_file", file_id=plain))) == ["fine"]

    run(settings(tmp_path, "fine", **VECTORS, **GUARD), work)


# ---------------------------------------------------------------- containers

CODE: dict[str, Any] = {"tools": {"code": {"provider": "code-interpreter", "max_bytes": 8}}}


def runs(code: str) -> dict[str, Any]:
    return {"tool_calls": [{"name": "python", "arguments": {"code": code}}]}


def test_a_file_is_copied_into_a_container(tmp_path: Path) -> None:
    async def work(server: Responding) -> None:
        file = await sent(server, "in.txt", b"heron")
        made = (await server.http.post("/v1/containers", json={"name": "x"})).json()["id"]
        path = f"/v1/containers/{made}/files"
        for reply in (
            await server.http.post(path, json={"file_id": file}),
            await server.http.post(path, files={"file_id": (None, file.encode())}),
        ):
            assert reply.status_code == 200, reply.text
            assert (reply.json()["path"], reply.json()["bytes"]) == ("/mnt/data/in.txt", 5)
        reply = await server.http.post(path, json={"file_id": "file-none"})
        assert reply.status_code == 404 and reply.json()["error"]["param"] == "file_id"

    run(settings(tmp_path, **CODE), work)


def test_the_files_that_a_request_names_are_there_for_its_code(tmp_path: Path) -> None:
    async def work(server: Responding) -> None:
        file = await sent(server, "in.txt", b"heron")
        tool = {"type": "code_interpreter", "container": {"type": "auto", "file_ids": [file]}}
        first = await server.whole(input="read it", tools=[tool], include=["code_interpreter_call.outputs"])
        assert first["output"][0]["outputs"] == [{"type": "logs", "logs": "heron\n"}]
        then = await server.whole(
            input="again",
            tools=[tool],
            previous_response_id=first["id"],
            include=["code_interpreter_call.outputs"],
        )
        assert then["output"][0]["outputs"] == [{"type": "logs", "logs": "changed\n"}]  # not copied once more
        wrong = {"type": "code_interpreter", "container": {"type": "auto", "file_ids": ["file-none"]}}
        error = await server.refused(input="read it", tools=[wrong])
        assert error["status"] == 404 and error["param"] == "tools[0].container.file_ids"

    code = "print(open('in.txt').read()); open('in.txt', 'w').write('changed') and None"
    run(settings(tmp_path, runs(code), "done", runs(code), "done", **CODE), work)


def test_what_goes_into_a_container_is_judged(tmp_path: Path) -> None:
    async def work(server: Responding) -> None:
        stack: Stack = server.app.state.stack
        provider: Any = stack.tools["code"]
        assert isinstance(provider, Containers)
        made = (await server.http.post("/v1/containers", json={"name": "x"})).json()["id"]
        for content, code in ((b"a kingfisher", "content_filter"), (b"\xff\xfe", "content_not_judged")):
            file = await sent(server, "in.txt", content)
            reply = await server.http.post(f"/v1/containers/{made}/files", json={"file_id": file})
            assert reply.status_code == 400 and reply.json()["error"]["code"] == code
            tool = {"type": "code_interpreter", "container": {"type": "auto", "file_ids": [file]}}
            error = await server.refused(input="read it", tools=[tool])
            assert error["code"] == code
        assert await provider.files(made) == []

    run(settings(tmp_path, **CODE, **GUARD), work)

"""Responses that are kept: found again, paged, forgotten, worked on in the background, cancelled, resumed."""

import asyncio
import json
import time
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support import official
from tests.support.responding import Responding, config, run, texts
from tests.support.serving import serve
from tests.support.waiting import wait_until

SUMS = {"type": "mcp", "server_label": "sums"}
ADD = {"tool_calls": [{"name": "add", "arguments": {"a": 1, "b": 2}}]}
ENDED = ("completed", "incomplete", "failed", "cancelled")


async def ended(server: Responding, response: dict[str, Any]) -> dict[str, Any]:
    """A background response once it has ended."""
    async with asyncio.timeout(30):
        while True:
            found = (await server.http.get(f"/v1/responses/{response['id']}")).json()
            if found["status"] in ENDED:
                return official.response(found)
            await asyncio.sleep(0.02)


async def resumed(
    server: Responding, response: dict[str, Any], *, after: int | None = None
) -> list[dict[str, Any]]:
    """The events of a background response, from where they were left to the last."""
    params = {"stream": "true"} | ({} if after is None else {"starting_after": str(after)})
    reply = await server.http.get(f"/v1/responses/{response['id']}", params=params)
    assert reply.status_code == 200, reply.text
    return official.events(reply.text, first=0 if after is None else after + 1)


def test_what_is_not_to_be_kept_is_nowhere(tmp_path: Path) -> None:
    async def work(server: Responding) -> None:
        for found in await server.both(input="hi", store=False):
            assert found["store"] is False
            assert (await server.http.get(f"/v1/responses/{found['id']}")).status_code == 404
            error = await server.refused(input="and?", previous_response_id=found["id"])
            assert error["param"] == "previous_response_id"

    run(config(tmp_path, "a", "b"), work)


def test_a_response_that_is_forgotten(tmp_path: Path) -> None:
    async def work(server: Responding) -> None:
        found = await server.whole(input="hi")
        path = f"/v1/responses/{found['id']}"
        reply = await server.http.delete(path)
        assert reply.json() == {"id": found["id"], "object": "response", "deleted": True}
        assert (await server.http.get(path)).status_code == 404
        assert (await server.http.delete(path)).status_code == 404
        assert (await server.http.get(f"{path}/input_items")).status_code == 404

    run(config(tmp_path, "a"), work)


def test_input_items_page_by_page(tmp_path: Path) -> None:
    said = [{"role": "user", "content": str(number), "id": f"msg_{number}"} for number in range(5)]

    async def work(server: Responding) -> None:
        found = await server.whole(input=said)
        path = f"/v1/responses/{found['id']}/input_items"

        async def page(**params: Any) -> tuple[list[str], bool]:
            data = official.page((await server.http.get(path, params=params)).json())
            ids = [item["id"] for item in data["data"]]
            assert (data["first_id"], data["last_id"]) == ((ids[0], ids[-1]) if ids else ("", ""))
            return [name.removeprefix("msg_") for name in ids], data["has_more"]

        assert await page() == (["4", "3", "2", "1", "0"], False)
        assert await page(limit=2) == (["4", "3"], True)
        assert await page(limit=2, after="msg_3") == (["2", "1"], True)
        assert await page(limit=2, after="msg_1") == (["0"], False)
        assert await page(order="asc", limit=3, after="msg_1") == (["2", "3", "4"], False)
        assert await page(after="msg_0") == ([], False)
        for params in ({"after": "msg_9"}, {"limit": 0}, {"limit": 101}, {"order": "up"}, {"include": "x"}):
            reply = await server.http.get(path, params=params)
            assert reply.status_code == 400 and reply.json()["error"]["param"] == next(iter(params))

    run(config(tmp_path, "a"), work)


def test_a_background_response(tmp_path: Path) -> None:
    reply = {"reasoning_content": "hm", "content": "one two"}

    async def work(server: Responding) -> None:
        made = await server.whole(input="hi", background=True)
        assert made["status"] == "queued" and made["background"] is True and made["output"] == []
        found = await ended(server, made)
        assert texts(found) == ["one two"] and found["status"] == "completed"
        events = await resumed(server, made)
        assert official.told(events) == found
        for after in (0, 5, len(events) - 2):
            assert await resumed(server, made, after=after) == events[after + 1 :]
        assert await resumed(server, made, after=len(events) - 1) == []
        # streamed from the start
        events = await server.stream(input="hi", background=True)
        assert [event["type"] for event in events[:3]] == [
            "response.created",
            "response.queued",
            "response.in_progress",
        ]

    run(config(tmp_path, reply, reply), work)


def test_a_background_stream_is_read_while_it_is_written(tmp_path: Path) -> None:
    slow = {"chunks": [f"{number} " for number in range(30)], "delay": 0.03}

    async def work(server: Responding) -> None:
        made = await server.whole(input="hi", background=True)
        one, two = await asyncio.gather(resumed(server, made), resumed(server, made, after=3))
        assert one[4:] == two and official.told(one)["status"] == "completed"

    run(config(tmp_path, slow), work)


def test_a_background_response_with_tools(tmp_path: Path) -> None:
    async def work(server: Responding) -> None:
        made = await server.whole(input="?", background=True, tools=[SUMS | {"require_approval": "never"}])
        found = await ended(server, made)
        assert [item["type"] for item in found["output"]] == ["mcp_list_tools", "mcp_call", "message"]
        assert official.told(await resumed(server, made)) == found

    run(config(tmp_path, ADD, "3"), work)


@pytest.mark.parametrize("after", [0.0, 0.15])
def test_a_background_response_is_cancelled(tmp_path: Path, after: float) -> None:
    slow = {"chunks": [f"{number} " for number in range(300)], "delay": 0.02}

    async def work(server: Responding) -> None:
        made = await server.whole(input="hi", background=True)
        await asyncio.sleep(after)
        path = f"/v1/responses/{made['id']}"
        reply = await server.http.post(f"{path}/cancel")
        found = official.response(reply.json())
        assert reply.status_code == 200 and found["status"] == "cancelled"
        assert (await server.http.get(path)).json() == found
        assert (await server.http.post(f"{path}/cancel")).json() == found  # and once more
        events = await resumed(server, made)
        official.told(events)
        assert [item["status"] for item in found["output"]] in ([], ["incomplete"])
        assert server.scripted.cancelled == len(server.scripted.requests)
        reply = await server.http.delete(path)
        assert reply.json()["deleted"]

    run(config(tmp_path, slow), work)


def test_what_cannot_be_cancelled_or_streamed_again(tmp_path: Path) -> None:
    async def work(server: Responding) -> None:
        found = await server.whole(input="hi")
        path = f"/v1/responses/{found['id']}"
        reply = await server.http.post(f"{path}/cancel")
        assert reply.status_code == 400 and "background" in reply.json()["error"]["message"]
        reply = await server.http.get(path, params={"stream": "true"})
        assert reply.status_code == 400 and reply.json()["error"]["param"] == "stream"
        made = await server.whole(input="hi", background=True)
        done = await ended(server, made)
        reply = await server.http.post(f"/v1/responses/{made['id']}/cancel")
        assert reply.json() == done  # it stays as it is

    run(config(tmp_path, "a", "b"), work)


def test_a_background_response_that_fails(tmp_path: Path) -> None:
    async def work(server: Responding) -> None:
        for reply in (
            {"error": {"status": 503, "message": "no luck"}},
            {"content": "a", "error": {"status": 500}},
        ):
            server.scripted.queue(type(server.scripted.replies[0])(**reply))
            made = await server.whole(input="hi", background=True)
            found = await ended(server, made)
            assert found["status"] == "failed" and found["error"]["code"] == "server_error"
            assert official.told(await resumed(server, made)) == found

    error = {"status": 503, "message": "no luck"}
    run(config(tmp_path, {"error": error}, {"content": "a", "error": error}), work)


@pytest.mark.parametrize("path", ["/input_tokens", "/compact"])
def test_what_is_asked_beside_a_turn_makes_no_approved_call(path: str, tmp_path: Path) -> None:
    async def work(server: Responding) -> None:
        first = await server.whole(input="?", tools=[SUMS])
        asked = first["output"][-1]["id"]
        answer = {"type": "mcp_approval_response", "approval_request_id": asked, "approve": True}
        given: dict[str, Any] = {"input": [answer], "previous_response_id": first["id"], "tools": [SUMS]}
        reply = await server.post(path, **given)
        assert reply.status_code == 200, reply.text
        assert not server.sums.made
        await server.whole(**given)
        assert len(server.sums.made) == 1

    replies = [ADD, *(["in short"] if path == "/compact" else []), "it is 3"]
    run(config(tmp_path, *replies), work)


def test_an_approval_is_asked_for_and_given_or_not(tmp_path: Path) -> None:
    async def work(server: Responding) -> None:
        events = await server.stream(input="?", tools=[SUMS])
        first = events[-1]["response"]
        assert first["status"] == "completed" and not server.sums.made
        asked = first["output"][-1]
        assert asked["type"] == "mcp_approval_request" and json.loads(asked["arguments"]) == {"a": 1, "b": 2}
        answer = {"type": "mcp_approval_response", "approval_request_id": asked["id"], "approve": True}
        after = await server.whole(input=[answer], previous_response_id=first["id"], tools=[SUMS])
        call, said = after["output"]
        assert call["approval_request_id"] == asked["id"] and call["output"] == "3"
        assert said["content"][0]["text"] == "it is 3" and len(server.sums.made) == 1
        # what has been answered is not made again
        await server.whole(input="more?", previous_response_id=after["id"], tools=[SUMS])
        assert len(server.sums.made) == 1
        answer |= {"approve": False, "reason": "too dear"}
        refused = await server.whole(input=[answer], previous_response_id=first["id"], tools=[SUMS])
        assert refused["output"][0]["status"] == "failed" and "too dear" in json.dumps(server.asked()[-1])
        assert len(server.sums.made) == 1
        answer["approval_request_id"] = "mcpr_none"
        error = await server.refused(input=[answer], previous_response_id=first["id"], tools=[SUMS])
        assert error["param"] == "input" and "mcpr_none" in error["message"]

    run(config(tmp_path, ADD, "it is 3", "no more", "a pity"), work)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_stops_the_model(tmp_path: Path, stream: bool) -> None:
    """The response is kept as cancelled, with what had been said."""
    slow = {"chunks": [f"{number} " for number in range(5000)], "delay": 0.02}
    with serve(config(tmp_path, slow)) as running:
        body = json.dumps({"model": "test/scripted", "input": "hi", "stream": stream})
        client = HTTPConnection(running.url.removeprefix("http://"), timeout=30)
        client.request("POST", "/v1/responses", body, {"content-type": "application/json"})
        if stream:
            reply = client.getresponse()
            while b"output_text.delta" not in reply.readline():
                pass
            reply.close()
        else:
            wait_until(lambda: statuses(running))
            time.sleep(0.1)  # something was said
        client.close()
        model: Any = running.app.state.stack.inference["test"]
        wait_until(lambda: statuses(running)[0][1] != "in_progress")
        kept = statuses(running)
        assert model.cancelled == 1 and len(kept) == 1 and kept[0][1] == "cancelled"
        found = httpx.get(f"{running.url}/v1/responses/{kept[0][0]}").json()
        official.response(found)
        assert found["output"][0]["status"] == "incomplete" and texts(found)[0].startswith("0 ")


def statuses(running: Any) -> list[Any]:
    store = running.app.state.stack.store

    def look(connection: Any) -> list[Any]:
        return list(connection.exec_driver_sql("select id, status from responses").all())

    return asyncio.run(store.read(look))

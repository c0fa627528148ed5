"""Turns that go on: after a crash, a database that was away, another clock; and with keys nobody keeps."""

import asyncio
import json
import resource
import threading
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from sqlalchemy import make_url, update

from llama_stack_lite.api.responses import MCPCallItem, MCPListToolsItem, WebSearchItem
from llama_stack_lite.server import create_app
from llama_stack_lite.state import archive, leases
from llama_stack_lite.state.journal import Record
from llama_stack_lite.state.store import Store
from llama_stack_lite.state.tables import responses
from tests.support.background import begun, config, ended, post, said, served, until
from tests.support.durable import TOOLS, Follower, Server
from tests.support.mcp_servers import listening
from tests.support.planner import marks
from tests.support.postgres import postgres, server

KEY = "hush-7f3a9c"


@asynccontextmanager
async def left(folder: Path, plan: str, **fields: Any) -> AsyncGenerator[tuple[Any, Any, Record]]:
    """A turn whose server stops in the middle of the block; it is gone on with behind it."""
    app = create_app(config(folder, f"sqlite:///{folder / 'state.db'}", workers=0))
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client,
    ):
        body = {"model": "test/planner", "input": plan, "background": True, "tools": TOOLS, **fields}
        turn_id = (await client.post("/v1/responses", json=body)).json()["id"]
        agents = app.state.stack.agents
        assert await leases.claim(agents.turns.store, agents.turns.worker, lease=0.1) == turn_id
        turn = await agents.turns.again(await archive.get(agents.turns.store, turn_id))
        record = turn.journal
        record.tell(turn.whole("response.in_progress"))
        yield client, turn, record
        await record.flush(turn.response)


def gone_on(folder: Path, turn_id: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    with served(folder) as (client, _):
        found = ended(client, turn_id)
        follower = Follower(turn_id)
        for event in said(client, turn_id):
            follower._take(event)
        follower.check(found)
        return found, follower.events


def test_what_a_model_was_saying_stays_incomplete_and_is_not_read_by_it(tmp_path: Path) -> None:
    async def main() -> str:
        async with left(tmp_path, "steps=0 words=2", tools=[]) as (_, turn, record):
            for event in [*turn.thought("hm"), *turn.said("The ans", logprobs=[])]:
                record.tell(event)
        return str(turn.response.id)

    found, _ = gone_on(tmp_path, turn_id := asyncio.run(main()))
    told = [(item["type"], item.get("status")) for item in found["output"] if item["type"] != "reasoning"]
    assert told == [("message", "incomplete"), ("message", "completed")]
    assert found["output"][1]["content"][0]["text"] == "The ans"
    with served(tmp_path) as (client, _):  # and later turns do not read it either
        more = post(client, "steps=0", background=False, previous_response_id=turn_id)
        assert more.status_code == 200

    async def history() -> list[str]:
        store = await Store.open(f"sqlite:///{tmp_path / 'state.db'}")
        items, _ = await store.read(lambda connection: archive.chain(connection, turn_id))
        await store.aclose()
        return [item.type for item in items]

    assert asyncio.run(history()) == ["message", "reasoning", "reasoning", "message"]


def test_a_list_of_tools_that_did_not_come_is_asked_for_again(tmp_path: Path) -> None:
    async def main() -> str:
        async with left(tmp_path, "steps=1") as (_, turn, record):
            place = turn.place(MCPListToolsItem(server_label="ledger", tools=[]))
            record.tell(turn.added(place))
        return str(turn.response.id)

    found, events = gone_on(tmp_path, asyncio.run(main()))
    first, again = (item for item in found["output"] if item["type"] == "mcp_list_tools")
    assert "stopped" in first["error"] and again["tools"][0]["name"] == "write"
    assert "response.mcp_list_tools.failed" in [event["type"] for event in events]
    assert found["status"] == "completed"


def test_a_turn_that_waits_for_its_client_is_not_asked_again(tmp_path: Path) -> None:
    """It called a function of the client's, and a tool of ours was still at work."""

    async def main() -> str:
        async with left(tmp_path, "steps=1") as (_, turn, record):
            for event in [*turn.calling("call_1", "f"), *turn.called(whole=True)]:
                record.tell(event)
            items = [
                MCPCallItem(status="in_progress", server_label="ledger", name="write", arguments="{}"),
                WebSearchItem(status="in_progress"),
            ]
            for item in items:
                record.tell(turn.added(turn.place(item)))
        return str(turn.response.id)

    found, _ = gone_on(tmp_path, asyncio.run(main()))
    assert found["status"] == "completed"
    told = [(item["type"], item["status"]) for item in found["output"]]
    assert told == [
        ("function_call", "completed"),
        ("mcp_call", "failed"),
        ("web_search_call", "failed"),
    ]
    assert "not made again" in json.dumps(found["output"][1]["error"])


# ---------------------------------------------------------------- a database that fails


def test_a_turn_outlives_a_database_that_is_away_for_a_while(tmp_path: Path) -> None:
    with postgres() as url, served(tmp_path, url=url) as (client, _):
        name = make_url(url).database
        turn = begun(client, "steps=3 seconds=0.3")
        until(lambda: marks(tmp_path / "ledger.txt"))
        with psycopg.connect(server().get_uri(), autocommit=True) as admin:
            admin.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false".encode())
            admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])
            time.sleep(2)
            assert client.get("/v1/health").status_code == 200
            assert post(client, "steps=0").status_code == 503
            admin.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true".encode())
        found = ended(client, turn)
        assert found["status"] in ("completed", "failed")
        assert len(marks(tmp_path / "ledger.txt")) == len(set(marks(tmp_path / "ledger.txt")))
        assert ended(client, begun(client, "steps=1"))["status"] == "completed"


def test_a_turn_outlives_a_disk_that_is_full_for_a_while(tmp_path: Path) -> None:
    with Server(tmp_path) as server:
        server.start()
        assert server.pid
        with httpx.Client(base_url=server.url, timeout=30, trust_env=False) as client:
            turn = begun(client, "steps=3 seconds=0.3")
            until(lambda: marks(server.ledger))
            _, most = resource.prlimit(server.pid, resource.RLIMIT_FSIZE)
            size = (tmp_path / "state.db-wal").stat().st_size
            resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (size, most))
            until(lambda: post(client, "steps=0 words=2000").status_code == 503)
            time.sleep(1)
            resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (most, most))
            assert ended(client, turn)["status"] in ("completed", "failed")
            assert len(marks(server.ledger)) == len(set(marks(server.ledger)))
            assert ended(client, begun(client, "steps=1"))["status"] == "completed"


def test_leases_go_by_the_database_s_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with served(tmp_path, workers=0) as (client, _):
        turn = begun(client, "steps=0")

    async def main() -> None:
        store = await Store.open(f"sqlite:///{tmp_path / 'state.db'}")
        assert await leases.claim(store, "one", lease=60) == turn
        monkeypatch.setattr(time, "time", lambda: 2e10)  # a server whose clock is far ahead
        assert await leases.claim(store, "two", lease=60) is None
        monkeypatch.setattr(time, "time", lambda: 0.0)
        lapsed = update(responses).values(leased_until=responses.c.leased_until - 61)
        await store.write(lambda connection: connection.execute(lapsed) and None)
        assert await leases.claim(store, "two", lease=60) == turn
        await store.aclose()

    asyncio.run(main())


# ---------------------------------------------------------------- keys


def test_keys_of_a_turn_are_in_no_file_and_it_runs_where_they_are(tmp_path: Path) -> None:
    came = threading.Event()

    async def trap(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            if dict(scope["headers"]).get(b"authorization") == f"Bearer {KEY}".encode():
                came.set()
            await send({"type": "http.response.start", "status": 404, "headers": []})
            await send({"type": "http.response.body", "body": b""})

    def kept() -> bool:
        return any(KEY.encode() in file.read_bytes() for file in tmp_path.iterdir() if file.is_file())

    with listening(trap) as url, Server(tmp_path, workers=1) as server:
        tool = {"type": "mcp", "server_label": "far", "server_url": f"{url}/mcp", "authorization": KEY}
        server.start()
        with httpx.Client(base_url=server.url, timeout=30, trust_env=False) as client:
            first = begun(client, "steps=0", tools=[tool])
            found = ended(client, first)
            assert found["status"] == "completed" and came.is_set() and KEY not in json.dumps(found)
            begun(client, "words=200")
            until(lambda: not kept())
            second = begun(client, "steps=0", tools=[tool])
            assert client.get(f"/v1/responses/{second}").json()["status"] == "queued" and not kept()
            server.stop()
            server.start()
            found = ended(client, second)
            assert found["status"] == "failed" and "keys" in found["error"]["message"]
        assert not kept()


def test_keys_are_not_taken_where_nobody_works(tmp_path: Path) -> None:
    tool = {
        "type": "mcp",
        "server_label": "far",
        "server_url": "http://127.0.0.1:1/mcp",
        "authorization": KEY,
    }
    with served(tmp_path, workers=0) as (client, _):
        refused = post(client, "steps=0", tools=[tool])
        assert refused.status_code == 400 and refused.json()["error"]["param"] == "tools"

"""Responses in the background: queued, read along, cancelled."""

import asyncio
import json
import sqlite3
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import Connection, func, select

from llama_stack_lite.state.store import Store
from llama_stack_lite.state.tables import metadata
from tests.support.background import begun, ended, post, said, served, until
from tests.support.databases import KINDS, database
from tests.support.durable import Follower
from tests.support.planner import marks
from tests.support.postgres import postgres

# ---------------------------------------------------------------- the queue


@pytest.mark.parametrize("kind", KINDS)
def test_a_full_queue_refuses_and_keeps_nothing(kind: str, tmp_path: Path) -> None:
    with database(kind, tmp_path) as url, served(tmp_path, url=url, workers=0, queue=3) as (client, running):
        with ThreadPoolExecutor(12) as pool:
            answers = list(pool.map(lambda number: post(client, f"turn={number}"), range(12)))
        assert Counter(answer.status_code for answer in answers) == {200: 3, 429: 9}
        refused = next(answer for answer in answers if answer.status_code == 429)
        assert refused.headers["retry-after"] == "5" and refused.json()["error"]["code"] == "queue_full"
        store: Store = running.app.state.stack.store

        def count(connection: Connection) -> dict[str, int | None]:
            return {
                name: connection.scalar(select(func.count()).select_from(metadata.tables[name]))
                for name in ("responses", "response_items", "response_events")
            }

        async def counted() -> dict[str, int | None]:
            other = await Store.open(url)
            try:
                return await other.read(count)
            finally:
                await other.aclose()

        assert store and asyncio.run(counted()) == {"responses": 3, "response_items": 3, "response_events": 3}


def test_what_cannot_be_read_does_not_stop_the_queue(tmp_path: Path) -> None:
    with served(tmp_path, workers=0) as (client, _):
        broken, fine = begun(client, "steps=0"), begun(client, "steps=0")
    with sqlite3.connect(tmp_path / "state.db") as connection:
        connection.execute("UPDATE responses SET request = '{}' WHERE id = ?", [broken])
    connection.close()
    with served(tmp_path, workers=1) as (client, _):
        assert ended(client, fine)["status"] == "completed"
    with sqlite3.connect(tmp_path / "state.db") as connection:
        status = connection.execute("SELECT status FROM responses WHERE id = ?", [broken]).fetchone()
    connection.close()
    assert status == ("failed",)


# ---------------------------------------------------------------- cancelled


def test_a_turn_that_waits_is_cancelled(tmp_path: Path) -> None:
    with served(tmp_path, workers=0) as (client, _):
        turn = begun(client, "steps=0")
        found = client.post(f"/v1/responses/{turn}/cancel").json()
        assert found["status"] == "cancelled" and found == client.get(f"/v1/responses/{turn}").json()
        events = said(client, turn)
        assert [event["type"] for event in events] == [
            "response.created",
            "response.queued",
            "response.failed",
        ]
        assert events[-1]["response"] == found


def test_a_turn_is_cancelled_while_it_runs_and_stays_as_it_is_afterwards(tmp_path: Path) -> None:
    with served(tmp_path) as (client, _):
        turn = begun(client, "steps=1 seconds=20")
        until(lambda: marks(tmp_path / "ledger.txt"))
        refused = client.delete(f"/v1/responses/{turn}")
        assert refused.status_code == 400 and "cancel it first" in refused.json()["error"]["message"]
        began = time.monotonic()
        found = client.post(f"/v1/responses/{turn}/cancel").json()
        assert found["status"] == "cancelled" and time.monotonic() - began < 2
        assert [item["status"] for item in found["output"] if item["type"] == "mcp_call"] == ["incomplete"]
        assert client.post(f"/v1/responses/{turn}/cancel").json() == found
        assert said(client, turn)[-1]["response"] == found
        assert client.delete(f"/v1/responses/{turn}").json()["deleted"] is True
        for path in (f"/v1/responses/{turn}", f"/v1/responses/{turn}?stream=true"):
            assert client.get(path).status_code == 404
        assert client.post(f"/v1/responses/{turn}/cancel").status_code == 404


def test_what_has_ended_or_is_a_client_s_own_cannot_be_cancelled(tmp_path: Path) -> None:
    with served(tmp_path) as (client, _):
        turn = begun(client, "steps=0")
        found = ended(client, turn)
        assert found["status"] == "completed"
        assert client.post(f"/v1/responses/{turn}/cancel").json() == found
        own = post(client, "steps=0", background=False).json()["id"]
        refused = client.post(f"/v1/responses/{own}/cancel")
        assert refused.status_code == 400 and "background" in refused.json()["error"]["message"]
        refused = client.get(f"/v1/responses/{own}", params={"stream": "true"})
        assert refused.status_code == 400


def test_a_turn_is_cancelled_at_another_replica_than_that_which_works_on_it(tmp_path: Path) -> None:
    with (
        postgres() as url,
        served(tmp_path, url=url) as (client, _),
        served(tmp_path, url=url, workers=0) as (other, _),
    ):
        turn = begun(client, "steps=1 seconds=20")
        until(lambda: marks(tmp_path / "ledger.txt"))
        began = time.monotonic()
        assert other.post(f"/v1/responses/{turn}/cancel").json()["status"] == "cancelled"
        assert time.monotonic() - began < 4
        assert client.get(f"/v1/responses/{turn}").json() == other.get(f"/v1/responses/{turn}").json()


def test_a_turn_ends_with_the_client_who_follows_it(tmp_path: Path) -> None:
    with served(tmp_path) as (client, _):
        body = {"model": "test/planner", "input": "words=500", "stream": True}
        turn = ""
        with client.stream("POST", "/v1/responses", json=body) as answer:
            for line in answer.iter_lines():
                if line.startswith("data: ") and (event := json.loads(line[6:])):
                    turn = event["response"]["id"] if "response" in event else turn
                    if event["type"] == "response.output_text.delta" and "word5" in event["delta"]:
                        break
        found = ended(client, turn, within=5)
    assert found["status"] == "cancelled"
    message = found["output"][-1]
    assert message["status"] == "incomplete" and "word4 word5" in message["content"][0]["text"]


# ---------------------------------------------------------------- read along


def test_readers_are_told_by_the_server_that_works_and_do_not_ask_the_database(tmp_path: Path) -> None:
    with served(tmp_path) as (client, running):
        store, reads = running.app.state.stack.store, Counter[str]()
        plain = store.read

        async def counted(work: Any) -> Any:
            reads[work.__qualname__.split(".")[0]] += 1
            return await plain(work)

        turn = begun(client, "words=300")
        store.read = counted

        async def all_of_it() -> list[Follower]:
            limits = httpx.Limits(max_connections=None)
            async with httpx.AsyncClient(
                base_url=running.url, timeout=30, trust_env=False, limits=limits
            ) as reader:
                followers = [Follower(turn) for _ in range(40)]
                await asyncio.gather(*(follower.follow(reader) for follower in followers))
            return followers

        followers = asyncio.run(all_of_it())
        final = client.get(f"/v1/responses/{turn}").json()
        for follower in followers:
            follower.check(final)
        assert reads["events"] < 3 * len(followers), reads  # instead of one each time that something is kept


@pytest.mark.parametrize("after", ["4", "100000", str(10**30)])
def test_a_stream_goes_on_behind_any_event(after: str, tmp_path: Path) -> None:
    with served(tmp_path) as (client, _):
        turn = begun(client, "steps=0")
        ended(client, turn)
        numbers = [event["sequence_number"] for event in said(client, turn)]
        assert numbers == list(range(len(numbers)))
        found = [event["sequence_number"] for event in said(client, turn, starting_after=after)]
        assert found == numbers[int(after) + 1 :]

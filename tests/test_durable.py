"""Turns of the background on servers that are killed: nothing is lost, nothing is done twice."""

import asyncio
import json
import os
import random
import secrets
import signal
import sqlite3
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.durable import ENDED, TOOLS, Follower, Load, Server
from tests.support.planner import marks
from tests.support.postgres import postgres

KILLS = int(os.environ.get("LLAMA_LITE_KILLS", "12"))
REPLICA_KILLS = max(4, KILLS // 4)


async def killed(load: Load, servers: list[Server], times: int, chance: random.Random) -> list[float]:
    """Kill one server after the other while clients are at work, each time at a random moment."""
    points = []
    for number in range(times):
        server = servers[number % len(servers)]
        points.append(chance.choice([chance.uniform(0, 0.3), chance.uniform(0.3, 1.0), chance.uniform(1, 2)]))
        await asyncio.sleep(points[-1])
        await asyncio.to_thread(server.stop)
        await asyncio.to_thread(server.start)
    load.stopped = True
    return points


async def endured(load: Load, servers: list[Server], times: int, chance: random.Random) -> dict[str, Any]:
    """Run the clients through all of it; the responses as they are in the end."""
    clients = asyncio.create_task(load.run())
    points = await killed(load, servers, times, chance)
    last = time.monotonic()
    async with asyncio.timeout(40):
        await clients
    finals = await load.finals(30 - (time.monotonic() - last))
    statuses = dict(Counter(final["status"] for final in finals.values()))
    interrupted = sum(follower.interrupted for follower in load.followers)
    reasons = Counter(final["error"]["message"] for final in finals.values() if final["error"])
    for server in servers:
        assert "Traceback" not in (log := server.log.read_text(encoding="utf-8")), log
    print(f"{len(points)} kills, {len(finals)} responses {statuses} {dict(reasons)}")
    print(f"{interrupted} streams interrupted,", end=" ")
    print(f"the last ended {time.monotonic() - last:.1f} s after the last start")
    return finals


def check(load: Load, finals: dict[str, Any], ledger: Path) -> None:
    for follower in load.followers:
        follower.check(finals[follower.id])
    for response_id, items in load.seen.items():
        there = {item["id"]: item for item in finals[response_id]["output"]}
        for item_id, item in items.items():
            assert there[item_id] == item
    for response_id, status in load.cancelled.items():
        assert finals[response_id]["status"] == status
    calls = [item for final in finals.values() for item in final["output"] if item["type"] == "mcp_call"]
    assert not [call for call in calls if call["status"] == "in_progress"]
    written = Counter(marks(ledger))
    assert set(written.values()) <= {1}  # no side effect twice
    known = {json.loads(call["arguments"])["mark"]: call for call in calls}
    for mark, call in known.items():
        if call["status"] == "completed":
            assert call["output"] == f"written: {mark}" and written[mark] == 1
    cut = sum(call["status"] != "completed" for call in calls)
    print(f"{len(calls)} calls, {len(written)} marks written, {cut} calls cut off")


async def check_conversation(load: Load, finals: dict[str, Any]) -> None:
    """Each response that was completed is in its conversation once, in one piece."""
    found: list[str] = []
    after: dict[str, str] = {}
    while True:
        params = {"order": "asc", "limit": "100", **after}
        page = (await load.client.get(f"/v1/conversations/{load.conversation}/items", params=params)).json()
        found += [item["id"] for item in page["data"]]
        if not page["has_more"]:
            break
        after = {"after": page["last_id"]}
    assert len(found) == len(set(found))
    for final in finals.values():
        if final["conversation"] and final["status"] == "completed":
            said = [item["id"] for item in final["output"] if item.get("status") != "incomplete"]
            start = found.index(said[0])
            assert found[start : start + len(said)] == said


@pytest.mark.slow
def test_nothing_is_lost_or_done_twice_when_a_server_is_killed_sixty_times(tmp_path: Path) -> None:
    seed = secrets.randbelow(10**6)
    print(f"\nseed {seed}")
    chance = random.Random(seed)
    server = Server(tmp_path, workers=4, queue=200)

    async def main() -> None:
        await asyncio.to_thread(server.start)
        load = Load(server.url, chance)
        async with load.client:
            finals = await endured(load, [server], KILLS, chance)
            check(load, finals, server.ledger)
            await check_conversation(load, finals)

    with server:
        asyncio.run(main())
    with sqlite3.connect(server.database) as connection:
        left = connection.execute("SELECT count(*) FROM responses WHERE status IN ('queued', 'in_progress')")
        assert left.fetchone() == (0,)
        journaled = connection.execute("SELECT item FROM response_items WHERE side = 'output'").fetchall()
    connection.close()
    told = "\n".join(item for (item,) in journaled)
    for mark in marks(server.ledger):
        assert mark in told  # none was made that was not kept before


@pytest.mark.slow
def test_two_replicas_on_postgresql_take_over_from_each_other(tmp_path: Path) -> None:
    seed = secrets.randbelow(10**6)
    print(f"\nseed {seed}")
    chance = random.Random(seed)

    async def main(servers: list[Server]) -> None:
        for server in servers:
            await asyncio.to_thread(server.start)
        one, two = (Load(server.url, chance, most=5) for server in servers)
        async with one.client, two.client:
            other = asyncio.create_task(two.run())
            finals = await endured(one, servers, REPLICA_KILLS, chance)
            two.stopped = True
            await asyncio.wait_for(other, 40)
            check(one, finals, servers[0].ledger)
            check(two, await two.finals(30), servers[0].ledger)

    with postgres() as url, Server(tmp_path, storage=url) as one, Server(tmp_path, storage=url) as two:
        asyncio.run(main([one, two]))


def post(server: Server, plan: str, **fields: Any) -> str:
    """Begin a turn in the background; returns its id."""
    body = {"model": "test/planner", "input": plan, "background": True, "tools": TOOLS, **fields}
    answer = httpx.post(f"{server.url}/v1/responses", json=body, timeout=30, trust_env=False)
    assert answer.status_code == 200, answer.text
    response_id: str = answer.json()["id"]
    return response_id


def get(server: Server, response_id: str) -> dict[str, Any]:
    answer = httpx.get(f"{server.url}/v1/responses/{response_id}", timeout=30, trust_env=False)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def ended(server: Server, response_id: str, *, within: float = 20) -> dict[str, Any]:
    late = time.monotonic() + within
    while (found := get(server, response_id))["status"] not in ENDED:
        assert time.monotonic() < late, found
        time.sleep(0.05)
    return found


class Reader:
    """A client who reads a turn along, in a thread of its own."""

    def __init__(self, server: Server, response_id: str) -> None:
        self.follower = Follower(response_id)
        self.thread = threading.Thread(target=lambda: asyncio.run(self._read(server)), daemon=True)
        self.thread.start()

    async def _read(self, server: Server) -> None:
        async with httpx.AsyncClient(base_url=server.url, timeout=30, trust_env=False) as client:
            await self.follower.follow(client)

    def result(self) -> Follower:
        self.thread.join(20)
        assert not self.thread.is_alive()
        return self.follower


def wait_for_marks(server: Server, count: int) -> None:
    late = time.monotonic() + 20
    while len(marks(server.ledger)) < count:
        assert time.monotonic() < late, server.log.read_text(encoding="utf-8")
        time.sleep(0.02)


def calls(found: dict[str, Any]) -> list[str]:
    return [item["status"] for item in found["output"] if item["type"] == "mcp_call"]


def test_another_replica_goes_on_with_a_killed_one_s_turn(tmp_path: Path) -> None:
    with postgres() as url, Server(tmp_path, storage=url) as one, Server(tmp_path, storage=url) as two:
        one.start()
        turn = post(one, "steps=2 seconds=3")
        wait_for_marks(one, 1)
        two.start()
        one.stop()
        killed = time.monotonic()
        found = ended(two, turn)
        took = time.monotonic() - killed - 3  # the second call's own time
    print(f"taken over and ended in {took:.1f} s")
    assert found["status"] == "completed" and calls(found) == ["failed", "completed"] and took < 5
    assert len(marks(one.ledger)) == 2


@pytest.mark.slow
@pytest.mark.parametrize("early", [True, False])
def test_a_worker_that_was_paused_writes_nothing_once_its_lease_is_another_s(
    early: bool, tmp_path: Path
) -> None:
    """Not while the other works on the turn, and not when it has ended; who read along misses nothing."""
    with postgres() as url, Server(tmp_path, storage=url) as one, Server(tmp_path, storage=url) as two:
        one.start()
        turn = post(one, "steps=3 seconds=1 words=40")
        reader = Reader(one, turn)
        wait_for_marks(one, 1)
        one.send(signal.SIGSTOP)
        two.start()
        wait_for_marks(one, 2)
        if not early:
            ended(two, turn)
        one.send(signal.SIGCONT)
        found = ended(two, turn)
        time.sleep(2)
        assert get(one, turn) == get(two, turn) == found and len(marks(one.ledger)) == 3
        assert found["status"] == "completed" and calls(found) == ["failed", "completed", "completed"]
        reader.result().check(found)
        assert ended(one, post(one, "steps=0"))["status"] == "completed"  # it works on, on others
        log = one.log.read_text(encoding="utf-8")
    assert "Traceback" not in log, log


def test_a_server_that_is_told_to_stop_lets_go_of_its_turns(tmp_path: Path) -> None:
    """A call that runs comes to its end; the turn goes on at the next start, at once, and is not to blame."""
    with Server(tmp_path, lease=30) as server:
        server.start()
        talking = [post(server, "steps=0 words=300")]
        calling = post(server, "steps=1 seconds=1")
        wait_for_marks(server, 1)
        for _ in range(4):  # more often than a turn may end its server
            server.stop(signal.SIGTERM)
            server.start()
        began = time.monotonic()
        found = ended(server, calling)
        assert found["status"] == "completed" and calls(found) == ["completed"]
        for turn in talking:
            found = ended(server, turn)
            assert found["status"] == "completed", found
            statuses = [item["status"] for item in found["output"] if item["type"] == "message"]
            assert statuses[-1] == "completed" and set(statuses[:-1]) <= {"incomplete"}
        assert time.monotonic() - began < 15  # far less than the lease


def test_a_turn_that_ends_its_server_each_time_is_given_up(tmp_path: Path) -> None:
    with Server(tmp_path) as server:
        server.start()
        poison, fine = post(server, "crash=1"), ""
        for _ in range(3):
            server.wait()
            server.start()
            fine = fine or post(server, "steps=0")
        found = ended(server, poison)
        assert found["status"] == "failed" and "given up" in found["error"]["message"]
        assert server.pid and ended(server, fine)["status"] in ENDED


def test_a_turn_in_the_foreground_has_failed_once_its_server_was_killed(tmp_path: Path) -> None:
    with Server(tmp_path) as server:
        server.start()
        body = {"model": "test/planner", "input": "steps=1 seconds=9", "tools": TOOLS, "stream": True}
        with httpx.stream(
            "POST", f"{server.url}/v1/responses", json=body, timeout=30, trust_env=False
        ) as answer:
            lines = answer.iter_lines()
            created = next(json.loads(line[6:]) for line in lines if line.startswith("data: "))
            wait_for_marks(server, 1)
            server.stop()
        server.start()
        found = ended(server, created["response"]["id"])
    assert found["status"] == "failed" and found["error"]["message"].startswith("the server stopped")
    assert calls(found) == ["incomplete"]

"""A server that is killed and started again on the same state, and clients who bear with it."""

import asyncio
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Self

import httpx
import yaml

from tests.support.lite import ROOT

JsonObject = dict[str, Any]
ENDED = ("completed", "incomplete", "failed", "cancelled")
TOOLS = [{"type": "mcp", "server_label": "ledger", "require_approval": "never"}]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


class Server:
    """`llama-lite run` as a process of its own, which can be started again and again at the same address."""

    launcher_module = "tests.support.launcher"

    def __init__(self, folder: Path, *, storage: str | None = None, pace: float = 0.01, **turns: Any) -> None:
        self.folder, self.port = folder, free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.ledger = folder / "ledger.txt"
        self.database = folder / "state.db"
        config = {
            "inference": {"test": {"provider": "tests.support.planner:Planner", "pace": pace}},
            "tools": {"ledger": {"provider": "tests.support.planner:Ledger", "path": str(self.ledger)}},
            "storage": storage or f"sqlite:///{self.database}",
            "turns": {"lease": 1, **turns},
            "fetch": {"allow": ["127.0.0.1"]},
        }
        file = folder / f"server-{self.port}.yaml"
        file.write_text(yaml.safe_dump(config), encoding="utf-8")
        self.command = [str(file), "--no-guard", "--port", str(self.port)]
        self.log = file.with_suffix(".log")
        self.launcher: subprocess.Popen[str] | None = None
        self.pid: int | None = None

    def __enter__(self) -> Self:
        paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        with self.log.open("ab") as log:
            self.launcher = subprocess.Popen(
                [sys.executable, "-m", self.launcher_module, *self.command],
                env=os.environ | {"PYTHONPATH": paths, "LLAMA_LITE_HOME": str(self.folder), "NO_PROXY": "*"},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert self._line() == "imported"
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        if self.launcher:
            self.launcher.communicate(timeout=30)

    def start(self) -> None:
        """Start, and wait until it listens."""
        assert self.launcher and self.launcher.stdin and self.pid is None
        self.launcher.stdin.write("start\n")
        self.launcher.stdin.flush()
        self.pid = int(self._line())
        while not self._line().startswith("export OPENAI_API_KEY"):
            pass

    def _line(self) -> str:
        assert self.launcher and self.launcher.stdout
        line = self.launcher.stdout.readline()
        assert line, self.log.read_text(encoding="utf-8")[-4000:]
        return line.strip()

    def send(self, number: int) -> None:
        assert self.pid
        os.kill(self.pid, number)

    def stop(self, number: int = signal.SIGKILL) -> None:
        """Send a signal, and wait for the end."""
        if self.pid:
            self.send(number)
            self.wait()

    def wait(self) -> None:
        while self.pid and Path(f"/proc/{self.pid}").exists():
            time.sleep(0.01)
        self.pid = None


async def patiently(client: httpx.AsyncClient, method: str, url: str, **options: Any) -> httpx.Response:
    """A request that is sent again and again while there is no server; its answer, whatever that is."""
    while True:
        try:
            return await client.request(method, url, **options)
        except httpx.TransportError:
            await asyncio.sleep(0.05)


async def events_of(lines: AsyncIterator[str]) -> AsyncIterator[JsonObject]:
    async for line in lines:
        if line.startswith("data: "):
            yield json.loads(line[6:])


class Follower:
    """A client that reads all events of a background response, whatever happens to its server."""

    def __init__(self, response_id: str = "") -> None:
        self.id = response_id
        self.events: list[JsonObject] = []
        self.interrupted = 0

    async def begin(self, client: httpx.AsyncClient, body: JsonObject) -> None:
        """Ask for a response in the background, and read its events from the first on."""
        await self._read(
            client.stream("POST", "/v1/responses", json={**body, "background": True, "stream": True})
        )

    async def follow(self, client: httpx.AsyncClient) -> None:
        """Go on behind the last event that came, to the end."""
        while not self.ended():
            params = {"stream": "true"}
            if self.events:
                params["starting_after"] = str(self.events[-1]["sequence_number"])
            await self._read(client.stream("GET", f"/v1/responses/{self.id}", params=params))

    async def _read(self, stream: Any) -> None:
        try:
            async with stream as answer:
                assert answer.status_code == 200, await answer.aread()
                async for event in events_of(answer.aiter_lines()):
                    if event["type"] == "error":
                        break
                    self._take(event)
        except httpx.TransportError:
            self.interrupted += 1
            await asyncio.sleep(0.1)

    def _take(self, event: JsonObject) -> None:
        assert event["sequence_number"] == len(self.events), (event, len(self.events))
        if event["type"] == "response.created":
            self.id = self.id or event["response"]["id"]
        self.events.append(event)

    def ended(self) -> bool:
        return bool(self.events) and self.events[-1].get("response", {}).get("status") in ENDED

    def check(self, final: JsonObject) -> None:
        """What was told fits together, and is what there is in the end."""
        assert self.ended() and self.events[-1]["response"] == final
        assert [event["type"] for event in self.events[:2]] == ["response.created", "response.queued"]
        told = [event.get("response", {}).get("status") in ENDED for event in self.events]
        assert told.count(True) == 1
        open_items: dict[int, str] = {}
        texts: dict[tuple[int, int], str] = {}
        for event in self.events:
            place: Any = event.get("output_index")
            if event["type"] == "response.output_item.added":
                assert place not in open_items
                open_items[place] = event["item"]["id"]
                assert final["output"][place]["id"] == event["item"]["id"]
            elif event["type"] == "response.output_item.done":
                assert open_items.pop(place) == event["item"]["id"]
                assert final["output"][place] == event["item"]
            elif place is not None:
                assert open_items[place] == event["item_id"]
            if event["type"] in ("response.output_text.delta", "response.reasoning_text.delta"):
                key = (place, event["content_index"])
                texts[key] = texts.get(key, "") + event["delta"]
            elif event["type"] in ("response.output_text.done", "response.reasoning_text.done"):
                assert texts.get((place, event["content_index"]), "") == event["text"]
        if final["status"] == "completed":
            assert not open_items


class Load:
    """Clients that begin turns, read along, poll and cancel, until they are told to stop."""

    def __init__(self, url: str, chance: random.Random, *, most: int = 10) -> None:
        self.client = httpx.AsyncClient(base_url=url, timeout=30, trust_env=False)
        self.chance = chance
        self.most = most
        self.stopped = False
        self.followers: list[Follower] = []
        self.acknowledged: list[str] = []
        self.foreground: list[str] = []
        self.seen: dict[str, dict[str, JsonObject]] = {}  # items that had ended, by their response
        self.cancelled: dict[str, str] = {}  # the status that a cancel answered
        self.conversation = ""
        self.refused = 0

    def plan(self) -> JsonObject:
        chance = self.chance
        some: dict[str, list[float]] = {
            "steps": [0, 1, 2],
            "calls": [1, 2],
            "words": [3, 9, 20],
            "seconds": [0, 0, 0.1, 0.4],
        }
        words = " ".join(f"{name}={chance.choice(values)}" for name, values in some.items())
        plan: JsonObject = {"model": "test/planner", "input": words}
        if chance.random() < 0.2:
            plan["conversation"] = self.conversation
        return {**plan, "tools": TOOLS}

    async def run(self) -> None:
        """Everything at once, until `stopped`; what was begun is read to its end."""
        made = await patiently(self.client, "POST", "/v1/conversations", json={})
        self.conversation = made.json()["id"]
        async with asyncio.TaskGroup() as group:
            for _ in range(self.most):
                group.create_task(self._client())
            group.create_task(self._poller())

    async def _client(self) -> None:
        while not self.stopped:
            await self._turn(self.chance.choice(["whole", "stream", "stream", "foreground", "cancel"]))

    async def _turn(self, way: str) -> None:
        if way == "foreground":
            return await self._foreground()
        follower = Follower()
        if way == "stream":
            await follower.begin(self.client, self.plan())
        else:
            try:
                answer = await self.client.post("/v1/responses", json={**self.plan(), "background": True})
            except httpx.TransportError:
                return await asyncio.sleep(0.1)
            if answer.status_code != 200:
                self.refused += 1
                return await asyncio.sleep(0.1)
            follower.id = answer.json()["id"]
        if not follower.id:
            return
        self.acknowledged.append(follower.id)
        self.followers.append(follower)
        if way == "cancel":
            await asyncio.sleep(self.chance.uniform(0, 0.3))
            answer = await patiently(self.client, "POST", f"/v1/responses/{follower.id}/cancel")
            if answer.status_code == 200:
                self.cancelled[follower.id] = answer.json()["status"]
        await follower.follow(self.client)

    async def _foreground(self) -> None:
        try:
            async with self.client.stream(
                "POST", "/v1/responses", json={**self.plan(), "stream": True}
            ) as answer:
                async for event in events_of(answer.aiter_lines()):
                    if event["type"] == "response.created":
                        self.foreground.append(event["response"]["id"])
        except httpx.TransportError:
            await asyncio.sleep(0.1)

    async def _poller(self) -> None:
        while not self.stopped:
            await asyncio.sleep(0.05)
            if self.acknowledged:
                response_id = self.chance.choice(self.acknowledged[-20:])
                answer = await patiently(self.client, "GET", f"/v1/responses/{response_id}")
                if answer.status_code == 200:
                    self._see(response_id, answer.json())

    def _see(self, response_id: str, found: JsonObject) -> None:
        items = self.seen.setdefault(response_id, {})
        for item in found["output"]:
            if item.get("status", "completed") != "in_progress" and item["type"] != "mcp_list_tools":
                items[item["id"]] = item

    async def finals(self, within: float) -> dict[str, JsonObject]:
        """All that was acknowledged, as it is once everything has ended, which has to be in time."""
        late = time.monotonic() + within
        found: dict[str, JsonObject] = {}
        for response_id in [*self.acknowledged, *self.foreground]:
            while True:
                answer = await patiently(self.client, "GET", f"/v1/responses/{response_id}")
                assert answer.status_code == 200, answer.text
                if answer.json()["status"] in ENDED:
                    break
                assert time.monotonic() < late, answer.text
                await asyncio.sleep(0.1)
            found[response_id] = answer.json()
        return found

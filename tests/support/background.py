"""Servers of the test's own process whose turns run in the background, and what clients do with them."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from llama_stack_lite.config import StackConfig
from tests.support.durable import ENDED, TOOLS
from tests.support.serving import Running, serve


def config(folder: Path, url: str, *, pace: float = 0.01, **turns: Any) -> StackConfig:
    return StackConfig.model_validate(
        {
            "inference": {"test": {"provider": "tests.support.planner:Planner", "pace": pace}},
            "tools": {"ledger": {"provider": "tests.support.planner:Ledger", "path": folder / "ledger.txt"}},
            "storage": url,
            "turns": {"lease": 1, **turns},
            "fetch": {"allow": ["127.0.0.1"]},
        }
    )


@contextmanager
def served(folder: Path, *, url: str = "", **settings: Any) -> Iterator[tuple[httpx.Client, Running]]:
    url = url or f"sqlite:///{folder / 'state.db'}"
    with (
        serve(config(folder, url, **settings)) as running,
        httpx.Client(base_url=running.url, timeout=30, trust_env=False) as client,
    ):
        yield client, running


def post(client: httpx.Client, plan: str, **fields: Any) -> httpx.Response:
    body = {"model": "test/planner", "input": plan, "background": True, "tools": TOOLS, **fields}
    return client.post("/v1/responses", json=body)


def begun(client: httpx.Client, plan: str, **fields: Any) -> str:
    answer = post(client, plan, **fields)
    assert answer.status_code == 200, answer.text
    found: str = answer.json()["id"]
    return found


def ended(client: httpx.Client, response_id: str, *, within: float = 20) -> dict[str, Any]:
    late = time.monotonic() + within
    while (found := client.get(f"/v1/responses/{response_id}").json())["status"] not in ENDED:
        assert time.monotonic() < late, found
        time.sleep(0.05)
    return dict(found)


def until(what: Callable[[], object]) -> None:
    late = time.monotonic() + 20
    while not what():
        assert time.monotonic() < late
        time.sleep(0.02)


def said(client: httpx.Client, response_id: str, **params: str) -> list[dict[str, Any]]:
    path = f"/v1/responses/{response_id}"
    with client.stream("GET", path, params={"stream": "true", **params}) as answer:
        return [json.loads(line[6:]) for line in answer.iter_lines() if line.startswith("data: ")]

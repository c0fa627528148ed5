"""What the README shows runs, in its order, against one server with a scripted model."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llama_stack_lite.config import StackConfig
from tests.support.serving import Running, serve

README = Path(__file__).parents[1] / "README.md"
SNIPPETS = re.findall(r"^```python\n(.*?)^```", README.read_text(encoding="utf-8"), re.M | re.S)


def calling(name: str, **arguments: Any) -> dict[str, Any]:
    return {"tool_calls": [{"name": name, "arguments": arguments}]}


REPLIES: list[Any] = [
    [calling("weather", city="Lisbon"), "21 C and sunny."],
    ["The Nile, the Amazon and the Rhine."],
    ["Hello, Ada.", "Ada."],
    [calling("get_current_time", timezone="Asia/Tokyo"), "It is late."],
    ["Tokyo.", "Once upon a time."],
    ["The Nile.", "The Rhine."],
    [],  # brings its own
]
PRINTED = [
    "21 C and sunny.\n",
    "The Nile, the Amazon and the Rhine.\n10 tokens\n",
    "Ada.\n",
    "time is to run get_current_time({'timezone': 'Asia/Tokyo'})\nIt is late.\n",
    "404 There is no response `resp_0`\n",
    "The Nile.\n",
    "",
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    config = {
        "inference": {
            "local": {
                "provider": "scripted",
                "models": ["smollm2-135m"],
                "embedding_models": ["all-minilm-l6-v2"],
                "replies": [reply for replies in REPLIES for reply in replies],
            }
        },
        "tools": {
            "time": {"provider": "mcp", "command": [sys.executable, "-m", "mcp_server_time"]},
        },
        "defaults": {"model": "local/smollm2-135m"},
        "storage": f"sqlite:///{tmp_path_factory.mktemp('state')}/state.db",
    }
    with serve(StackConfig.model_validate(config)) as running:
        yield running


def test_every_snippet_has_its_replies() -> None:
    assert len(SNIPPETS) == len(REPLIES) == len(PRINTED)


@pytest.mark.parametrize(("source", "printed"), list(zip(SNIPPETS, PRINTED, strict=True)))
def test_a_snippet_runs(
    source: str,
    printed: str,
    server: Running,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    source = source.replace("http://127.0.0.1:8321", server.url)
    exec(compile(source, "<README>", "exec"), {"__name__": "readme"})  # noqa: S102 - our own documentation
    assert capsys.readouterr().out.endswith(printed)

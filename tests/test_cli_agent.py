"""`llama-lite chat --agent`: what an agent says and calls, and the user's word on what it may call."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.lite import LITE, ROOT, Lite
from tests.support.lite import env as env
from tests.support.lite import lite as lite
from tests.support.terminal import Terminal, terminal

CALC = {
    "provider": "mcp",
    "command": [sys.executable, "-m", "tests.support.mcp_servers"],
    "cwd": str(ROOT),
    "allowed_tools": ["add", "fail"],
}
ADD = {"tool_calls": [{"name": "add", "arguments": {"a": 1, "b": 2}}]}


def agent(tmp_path: Path, *replies: Any, **fields: Any) -> Path:
    """A distribution with the agent `support`."""
    config = {
        "inference": {"test": {"provider": "scripted", "models": ["m"], "replies": list(replies)}},
        "safety": {"bird": {"provider": "canary"}},
        "tools": {"calc": CALC},
        "agents": {"support": {"model": "test/m", "instructions": "Help.", **fields}},
        "storage": f"sqlite:///{tmp_path}/state.db",
    }
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


@contextmanager
def talking(env: dict[str, str], path: Path) -> Iterator[Terminal]:
    with terminal([*LITE, "chat", "--distribution", str(path), "--agent", "support"], env) as person:
        person.expect("agent:support · /help lists the commands, /bye ends")
        person.expect(">>> ")
        yield person


def test_a_prompt_is_answered_once_with_the_calls_on_stderr(lite: Lite, tmp_path: Path) -> None:
    path = agent(tmp_path, ADD, "It is 3.", tools=["calc"])
    result = lite("chat", "--distribution", path, "--agent", "agent:support", "1 + 2?")
    assert result.returncode == 0, result.stderr
    assert result.stdout == "It is 3.\n"
    assert result.stderr.splitlines() == ['-> add({"a": 1, "b": 2})', "<- 3"]


def test_a_call_that_fails_is_told_so(lite: Lite, tmp_path: Path) -> None:
    fail = {"tool_calls": [{"name": "fail"}]}
    path = agent(tmp_path, fail, "Sorry.", tools=["calc"])
    result = lite("chat", "--distribution", path, "--agent", "support", "cook")
    assert result.stdout == "Sorry.\n"
    assert result.stderr.splitlines()[0] == "-> fail({})"
    assert "the kitchen burns" in result.stderr.splitlines()[1]


ASKS = {"type": "mcp", "server_label": "calc", "require_approval": "always"}


def test_where_nobody_can_be_asked_nothing_is_approved(lite: Lite, tmp_path: Path) -> None:
    path = agent(tmp_path, ADD, "As you like.", tools=[ASKS])
    result = lite("chat", "--distribution", path, "--agent", "support", "1 + 2?")
    assert result.stdout == "As you like.\n"
    assert 'Run add({"a": 1, "b": 2})? [y/N] no: nobody is there to ask' in result.stderr
    assert "<- The user did not approve this call" in result.stderr


@pytest.mark.parametrize(("word", "shown"), [("y", "<- 3"), ("", "<- The user did not approve this call")])
def test_the_user_is_asked(word: str, shown: str, env: dict[str, str], tmp_path: Path) -> None:
    with talking(env, agent(tmp_path, ADD, "Done.", tools=[ASKS])) as person:
        person.type("1 + 2?\n")
        person.expect('Run add({"a": 1, "b": 2})? [y/N] ')
        person.type(f"{word}\n")
        person.expect('-> add({"a": 1, "b": 2})')
        person.expect(shown)
        person.expect("Done.")
        person.expect(">>> ")
        person.type("/bye\n")
        assert person.process.wait(10) == 0


def test_a_conversation_goes_on_until_a_new_one(env: dict[str, str], tmp_path: Path) -> None:
    """The model says how many messages it reads, the agent's instructions among them."""
    path = agent(tmp_path)
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    config["inference"]["test"] = {"provider": "tests.support.slow:Slow"}
    config["agents"]["support"]["model"] = "test/parrot"
    config["agents"]["other"] = {"model": "test/macaw"}
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    with talking(env, path) as person:
        person.type("hello\n")
        person.expect("parrot#2 hello")
        person.expect(">>> ")
        person.type("again\n")
        person.expect("parrot#4 again")
        person.expect(">>> ")
        person.type("/new\n")
        person.expect(">>> ")
        person.type("anew\n")
        person.expect("parrot#2 anew")
        person.expect(">>> ")
        person.type("/model other\n")
        person.expect("* agent:other")
        person.expect("  agent:support")
        person.expect(">>> ")
        person.type("hello\n")
        person.expect("macaw#1 hello")
        person.expect(">>> ")
        person.type("/model nobody\n")
        person.expect("There is no agent `nobody`")
        person.expect(">>> ")


def test_ctrl_c_stops_the_answer_which_is_then_forgotten(env: dict[str, str], tmp_path: Path) -> None:
    path = agent(tmp_path)
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    config["inference"]["test"] = {"provider": "tests.support.slow:Slow", "pause": 0.05}
    config["agents"]["support"]["model"] = "test/parrot"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    with talking(env, path) as person:
        person.type("x " * 200 + "y\n")
        person.expect("parrot#2 x x x")
        person.type("\x03")
        assert " y " not in person.expect(">>> ", timeout=3)
        person.type("more\n")
        person.expect("parrot#2 more")
        person.expect(">>> ")


def test_a_refusal_is_shown(lite: Lite, tmp_path: Path) -> None:
    path = agent(tmp_path, "the canary sings", guardrails=["bird"])
    result = lite("chat", "--distribution", path, "--agent", "support", "sing")
    assert result.stdout.startswith("Withheld by the safety policy (shield `bird`, output")
    assert "sings" not in result.stdout


def test_functions_that_another_program_runs_are_not_here(lite: Lite, tmp_path: Path) -> None:
    lookup = {"type": "function", "name": "lookup", "parameters": {"type": "object", "properties": {}}}
    call = {"tool_calls": [{"name": "lookup"}]}
    path = agent(tmp_path, call, "I cannot look it up.", tools=[lookup])
    result = lite("chat", "--distribution", path, "--agent", "support", "where?")
    assert result.stdout == "I cannot look it up.\n" and result.stderr == "-> lookup({})\n"


def test_what_an_agent_says_does_not_drive_the_terminal(env: dict[str, str], tmp_path: Path) -> None:
    call = {"tool_calls": [{"name": "add", "arguments": '{"a": "\x1b]0;owned\x07\\n", "b": 2}'}]}
    with talking(env, agent(tmp_path, call, ADD, "\x1b[2Jdone", tools=[ASKS])) as person:
        person.type("go\n")
        shown = person.expect("[y/N] ")
        assert "\x1b]" not in shown and "\x07" not in shown
        person.type("y\n")
        assert "\x1b[2J" not in person.expect("done")


def test_mistakes_are_one_line(lite: Lite, tmp_path: Path) -> None:
    path = agent(tmp_path, {"error": {"status": 503, "message": "the cable"}})
    stateless = tmp_path / "stateless.yaml"
    stateless.write_text("inference: {test: {provider: scripted}}\n", encoding="utf-8")
    for arguments, code, reason in (
        (("--distribution", path, "--agent", "suport", "hi"), 1, "did you mean support"),
        (("--distribution", path, "--agent", "support@7", "hi"), 1, "version 7"),
        (("--distribution", stateless, "--agent", "support", "hi"), 1, "has no agents: its distribution has"),
        (
            ("--url", "http://127.0.0.1:9/v1", "--agent", "support", "hi"),
            1,
            "no answer from http://127.0.0.1:9",
        ),
        (("--distribution", path, "--agent", "support", "hi"), 1, "the cable"),
        (("--agent", "support", "--model", "m", "hi"), 2, "an agent has its own model"),
    ):
        result = lite("chat", *arguments)
        assert result.returncode == code, result
        assert result.stdout == "" and reason in result.stderr.splitlines()[-1], result.stderr

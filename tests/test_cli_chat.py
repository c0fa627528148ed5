"""`llama-lite chat`: an answer for a script, a conversation on a terminal, a stack in this process."""

import asyncio
import stat
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from llama_stack_lite.cli.transport import InProcess
from llama_stack_lite.config import StackConfig
from llama_stack_lite.server import create_app
from tests.support.lite import LITE, Distribution, Lite, address, serving
from tests.support.lite import distribution as distribution
from tests.support.lite import env as env
from tests.support.lite import lite as lite
from tests.support.serving import serve
from tests.support.terminal import Terminal, terminal

# ---------------------------------------------------------------- one answer


def test_a_prompt_is_answered_once_by_a_stack_in_this_process(lite: Lite, distribution: Distribution) -> None:
    result = lite("chat", "--distribution", distribution(), "hello", "you")
    assert (result.returncode, result.stdout, result.stderr) == (0, "parrot#1 hello you \n", "")


def test_piped_text_is_asked_below_the_prompt(lite: Lite, distribution: Distribution) -> None:
    path = distribution()
    assert lite("chat", "--distribution", path, input="from a pipe\n").stdout == "parrot#1 from a pipe \n"
    both = lite("chat", "--distribution", path, "--system", "Squawk.", "sum up:", input="a text")
    assert both.stdout == "Squawk. parrot#2 sum up:\n\na text \n"


def test_characters_that_end_lines_elsewhere_are_text(lite: Lite, distribution: Distribution) -> None:
    said = "a\u2028b\u0085c"
    assert lite("chat", "--distribution", distribution(), said).stdout == f"parrot#1 {said} \n"


def test_the_distribution_names_the_model_and_the_user_another(
    lite: Lite, distribution: Distribution
) -> None:
    path = distribution()
    path.write_text(path.read_text(encoding="utf-8") + "defaults: {model: macaw}\n", encoding="utf-8")
    assert lite("chat", "--distribution", path, "hi").stdout == "macaw#1 hi \n"
    assert lite("chat", "--distribution", path, "--model", "bird/parrot", "hi").stdout == "parrot#1 hi \n"


def test_what_goes_wrong_is_one_line(lite: Lite, distribution: Distribution) -> None:
    path = distribution()
    for arguments, reason in (
        (("--distribution", path, "--model", "parot", "hi"), "did you mean bird/parrot"),
        (("--distribution", path, "--model", "vectors", "hi"), "`bird/vectors` is no chat model"),
        (("--url", "http://127.0.0.1:9/v1", "hi"), "no answer from http://127.0.0.1:9/v1"),
    ):
        result = lite("chat", *arguments)
        assert result.returncode == 1, result
        assert result.stdout == "" and len(result.stderr.splitlines()) == 1 and reason in result.stderr
    assert "nothing is asked" in lite("chat", "--distribution", path).stderr
    for url in ("not a url", "http://x:y", "ftp://here"):
        result = lite("chat", "--url", url, "hi")
        assert result.returncode == 2 and f"{url!r} is no URL such as http" in result.stderr
    broken = lite("chat", "--distribution", distribution(broken=True), "hi")
    assert broken.returncode == 1 and broken.stderr.startswith("could not start: RuntimeError")


def test_a_servers_key_comes_from_the_environment(lite: Lite, distribution: Distribution) -> None:
    config: dict[str, Any] = {
        "inference": {"bird": {"provider": "tests.support.slow:Slow"}},
        "server": {"api_keys": ["sesame"]},
    }
    with serve(StackConfig.model_validate(config)) as running:
        url = f"{running.url}/v1"
        assert lite("chat", "--url", url, "hi", OPENAI_API_KEY="sesame").stdout == "parrot#1 hi \n"
        refused = lite("chat", "--url", url, "hi")
        assert refused.returncode == 1 and "set OPENAI_API_KEY" in refused.stderr
    keyed = distribution(server=config["server"])
    assert lite("chat", "--distribution", keyed, "hi").stdout == "parrot#1 hi \n"


# ---------------------------------------------------------------- a conversation


@contextmanager
def conversation(env: dict[str, str], path: Path) -> Iterator[Terminal]:
    with terminal([*LITE, "chat", "--distribution", str(path)], env) as person:
        person.expect("bird/parrot · /help lists the commands, /bye ends")
        person.expect(">>> ")
        yield person


def test_a_conversation_goes_on(env: dict[str, str], distribution: Distribution) -> None:
    with conversation(env, distribution()) as person:
        person.type("hello\n")
        person.expect("parrot#1 hello")
        person.expect(">>> ")
        person.type("again\n")
        person.expect("parrot#3 again")
        person.expect(">>> ")
        person.type("/system Speak up.\n")
        person.expect(">>> ")
        person.type("/model macaw\n")
        person.expect("  bird/parrot")
        assert "vectors" not in person.expect("* bird/macaw")
        person.expect(">>> ")
        person.type("/clear\n")
        person.expect(">>> ")
        person.type("anew\n")
        person.expect("Speak up. macaw#2 anew")
        person.expect(">>> ")
        person.type("/bye\n")
        assert person.process.wait(10) == 0


def test_mistakes_leave_the_prompt_where_it_was(env: dict[str, str], distribution: Distribution) -> None:
    with conversation(env, distribution()) as person:
        person.type("/nonsense\n")
        person.expect("There is no command /nonsense")
        person.expect(">>> ")
        person.type("/model parot\n")
        person.expect("did you mean bird/parrot")
        person.expect(">>> ")
        person.type("/help\n")
        person.expect("/system [text]")
        person.expect(">>> ")
        person.type("\n")
        person.expect(">>> ")
        person.type("hello\n")
        person.expect("parrot#1 hello")
        person.expect(">>> ")
        person.type("\x04")
        assert person.process.wait(10) == 0


def test_triple_quotes_hold_several_lines(env: dict[str, str], distribution: Distribution) -> None:
    with conversation(env, distribution()) as person:
        person.type('"""one\n')
        person.expect("... ")
        person.type('two"""\n')
        person.expect("parrot#1 one\r\ntwo")
        person.expect(">>> ")


def test_ctrl_c_stops_the_answer_and_not_the_conversation(
    env: dict[str, str], distribution: Distribution, tmp_path: Path
) -> None:
    trace = tmp_path / "trace"
    with conversation(env, distribution(pause=0.2, trace=str(trace))) as person:
        person.type("a b c d e f g h i j k l m n o p q r s t u v w x y z\n")
        person.expect("parrot#1 a b c")
        person.type("\x03")
        assert " y " not in person.expect(">>> ", timeout=3)
        assert trace.read_text(encoding="utf-8").split() == ["built", "stopped"]
        time.sleep(0.3)  # a signal between the prompt and readline's wait for a key is seen at that key only
        person.type("\x03")
        person.expect("Ctrl-D or /bye ends")
        person.expect(">>> ")
        person.type("more\n")
        person.expect("parrot#3 more")  # what was said before Ctrl-C counts
        person.expect(">>> ")
        person.type("/bye\n")
        assert person.process.wait(10) == 0
    assert trace.read_text(encoding="utf-8").split()[-1] == "closed"


def test_a_model_does_not_drive_the_terminal(env: dict[str, str], distribution: Distribution) -> None:
    with conversation(env, distribution()) as person:
        person.type("/system \x16\x1b]0;owned\x16\x07 words\n")  # ^V quotes a control character
        person.expect(">>> ")
        person.type("hello\n")
        assert "\x1b" not in person.expect("parrot#2 hello").replace("hello", "")


def test_history_is_kept_for_the_next_time_and_for_nobody_else(
    env: dict[str, str], distribution: Distribution, tmp_path: Path
) -> None:
    path = distribution()
    for typed in ("remember me\n", "\x1b[A\x1b[A\n"):  # arrow up, past /bye
        with conversation(env, path) as person:
            person.type(typed)
            person.expect("parrot#1 remember me")
            person.expect(">>> ")
            person.type("/bye\n")
            assert person.process.wait(10) == 0
    kept = tmp_path / "home" / "chat_history"
    assert "remember me" in kept.read_text(encoding="utf-8").splitlines()
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600


def test_a_running_server_is_talked_to_by_url(
    env: dict[str, str], distribution: Distribution, lite: Lite
) -> None:
    with serving(env, distribution()) as (_, banner):
        assert lite("chat", "--url", address(banner), "hello").stdout == "parrot#1 hello \n"


# ---------------------------------------------------------------- calls in this process


@asynccontextmanager
async def called(app: Any) -> AsyncIterator[httpx.AsyncClient]:
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=InProcess(app), base_url="http://here/v1") as client,
    ):
        yield client


def app_with(**settings: Any) -> Any:
    entry = {"provider": "tests.support.slow:Slow", **settings}
    return create_app(StackConfig.model_validate({"inference": {"bird": entry}}))


def test_a_stream_comes_through_while_it_is_made_and_closing_it_stops_the_model(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    body = {"model": "parrot", "messages": [{"role": "user", "content": "word " * 1000}], "stream": True}

    async def check() -> None:
        async with called(app_with(pause=0.05, trace=str(trace))) as client:
            async with client.stream("POST", "chat/completions", json=body) as reply:
                assert reply.status_code == 200
                async for line in reply.aiter_lines():
                    assert line.startswith("data: ")
                    break
                assert "stopped" not in trace.read_text(encoding="utf-8")
            assert "stopped" in trace.read_text(encoding="utf-8")
            assert "answered" not in trace.read_text(encoding="utf-8")

    asyncio.run(check())


def test_queries_errors_and_bodies_come_through() -> None:
    async def check() -> None:
        async with called(app_with()) as client:
            assert (await client.get("health?x=1")).json() == {"status": "OK", "safety": "off"}
            assert (await client.get("models/bird/parrot")).json()["id"] == "bird/parrot"
            missing = await client.post("chat/completions", json={"model": "parrot"})
            assert missing.status_code == 400 and missing.json()["error"]["param"] == "messages"

    asyncio.run(check())


@pytest.mark.parametrize("began", [False, True])
def test_an_application_that_breaks_is_an_error_and_no_hang(began: bool) -> None:
    async def broken(scope: Any, receive: Any, send: Any) -> None:
        if began:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"half", "more_body": True})

    async def check() -> None:
        async with httpx.AsyncClient(transport=InProcess(broken), base_url="http://here") as client:
            with pytest.raises(httpx.ReadError, match="without a whole response"):
                await client.get("/")

    asyncio.run(asyncio.wait_for(check(), 10))

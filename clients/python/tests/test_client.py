"""Every call, in each of the four ways in which a server can be reached."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from llama_stack_lite.errors import ConfigError
from llama_stack_lite.server import create_app
from llama_stack_lite_client import (
    APIError,
    AsyncClient,
    Client,
    ConnectionFailed,
    InvalidRequest,
    NotFound,
    RateLimited,
    Refused,
    TimedOut,
    Unauthorized,
    Unavailable,
)
from tests.support.serving import serve

from .served import WAYS, Configured, each_of, every, reached, scripted, served, value
from .served import configured as configured
from .served import local as local

GUARD = {"safety": {"bird": {"provider": "canary"}}, "enforce": {"input": ["bird"], "output": ["bird"]}}
each_way = pytest.mark.parametrize("way", WAYS)


@each_way
def test_a_chat_is_answered_whole_and_as_it_is_written(way: str, configured: Configured) -> None:
    async def check() -> None:
        async with reached(way, configured("one two", "three four")) as client:
            whole = await value(client.chat("hi", model="m"))
            assert (whole.text, whole.model, whole.usage.completion_tokens) == ("one two", "test/m", 2)
            said = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}]
            chunks = await every(client.chat.stream(said, model="m", temperature=0.5, extra={"seed": 7}))
            assert [chunk.text for chunk in chunks if chunk.text] == ["three ", "four"]
            assert chunks[-1].usage.completion_tokens == 2

    asyncio.run(check())


@each_way
def test_responses_are_made_followed_read_and_forgotten(way: str, configured: Configured) -> None:
    async def check() -> None:
        async with reached(way, configured("first", "second", "third")) as client:
            first = await value(client.responses.create("hi", metadata={"of": "test"}))
            assert (first.text, first.status, first.metadata) == ("first", "completed", {"of": "test"})
            again = await value(client.responses.retrieve(first.id))
            assert again == first
            given = (await value(client.responses.input_items(first.id))).data
            assert [item.text for item in given] == ["hi"]
            events = await every(client.responses.stream("and?", previous_response_id=first.id))
            assert [event.sequence_number for event in events] == list(range(len(events)))
            assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == "second"
            assert events[-1].response.text == "second"
            later = await value(client.responses.create("later", background=True))
            assert later.status == "queued" and not later.ended
            told = await every(client.responses.follow(later.id))
            assert [told[0].type, told[-1].type] == ["response.created", "response.completed"]
            rest = await every(client.responses.follow(later.id, starting_after=3))
            assert rest == told[4:]
            assert (await value(client.responses.cancel(later.id))).status == "completed"
            assert (await value(client.responses.delete(first.id))).deleted
            with pytest.raises(NotFound):
                await value(client.responses.retrieve(first.id))

    asyncio.run(check())


@each_way
def test_conversations_and_prompts_are_kept(way: str, configured: Configured) -> None:
    async def check() -> None:
        async with reached(way, configured("Tuesday")) as client:
            begun = {"role": "user", "content": "It is Monday."}
            kept = await value(client.conversations.create([begun], metadata={"a": "b"}))
            await value(client.responses.create("And tomorrow?", conversation=kept.id))
            items = (await value(client.conversations.items(kept.id, order="asc"))).data
            assert [item.text for item in items] == ["It is Monday.", "And tomorrow?", "Tuesday"]
            await value(client.conversations.add(kept.id, [{"role": "user", "content": "Thanks."}]))
            await value(client.conversations.remove(kept.id, items[0].id))
            page = await value(client.conversations.items(kept.id, limit=2))
            assert page.has_more and [item.text for item in page.data] == ["Thanks.", "Tuesday"]
            rest = await value(client.conversations.items(kept.id, after=page.last_id))
            assert [item.text for item in rest.data] == ["And tomorrow?"]
            changed = await value(client.conversations.update(kept.id, metadata={"c": "d"}))
            assert changed.metadata == {"c": "d"}
            assert (await value(client.conversations.delete(kept.id))).deleted

            prompt = await value(client.prompts.create("Hello {{name}}", variables=["name"]))
            newer = await value(client.prompts.update(prompt.prompt_id, "Bye", set_as_default=False))
            assert (prompt.version, newer.version, newer.is_default) == (1, 2, False)
            assert len((await value(client.prompts.versions(prompt.prompt_id))).data) == 2
            assert (await value(client.prompts.retrieve(prompt.prompt_id))).prompt == "Hello {{name}}"
            assert (await value(client.prompts.set_default(prompt.prompt_id, 2))).is_default
            assert [each.prompt for each in (await value(client.prompts.list())).data] == ["Bye"]
            assert (await value(client.prompts.delete(prompt.prompt_id))).deleted

    asyncio.run(check())


@each_way
def test_models_vectors_shields_and_health(way: str, configured: Configured) -> None:
    async def check() -> None:
        async with reached(way, configured(**GUARD)) as client:
            assert (await value(client.health())).safety == "on"
            assert {model.id for model in (await value(client.models.list())).data} == {"test/m", "test/e"}
            assert (await value(client.models.retrieve("m"))).kind == "chat"
            vectors = await value(client.embeddings(["a b", "c"], model="e", dimensions=8))
            assert [len(each.embedding) for each in vectors.data] == [8, 8]
            judged = await value(client.moderations(["fine", "a canary"]))
            assert [each.flagged for each in judged.results] == [False, True]
            assert [each.identifier for each in (await value(client.shields.list())).data] == ["bird"]
            assert "input" in (await value(client.shields.retrieve("bird"))).touchpoints
            assert (await value(client.shields.run("bird", "fine"))).violation is None
            found = (await value(client.shields.run("bird", "a canary"))).violation
            assert found.metadata["categories"] == ["canary"]

    asyncio.run(check())


@each_way
def test_errors_say_what_the_server_said(way: str, configured: Configured) -> None:
    failures = [{"error": {"status": status, "message": f"no {status}"}} for status in (401, 502)]

    async def check() -> None:
        async with reached(way, configured(*failures)) as client:
            with pytest.raises(InvalidRequest, match="temperature") as invalid:
                await value(client.chat("hi", model="m", temperature=9))
            assert (invalid.value.status, invalid.value.param) == (400, "temperature")
            with pytest.raises(NotFound, match="there is test/e, test/m") as missing:
                await value(client.chat("hi", model="mm"))
            assert (missing.value.param, missing.value.code) == ("model", "model_not_found")
            with pytest.raises(Unauthorized, match="no 401"):
                await value(client.chat("hi", model="m"))
            with pytest.raises(APIError, match="no 502") as broken:
                await every(client.chat.stream("hi", model="m"))
            assert broken.value.status == 502

    asyncio.run(check())


@each_way
def test_an_error_within_a_stream_is_raised(way: str, configured: Configured) -> None:
    broken = {"content": "some of it", "error": {"status": 503, "message": "the cable"}}

    async def check() -> None:
        async with reached(way, configured(broken, broken)) as client:
            heard = []
            with pytest.raises(Unavailable, match="the cable") as error:
                async for chunk in each_of(client.chat.stream("hi", model="m")):
                    heard.append(chunk.text)
            assert heard == ["some ", "of ", "it"] and error.value.status == 0
            events = await every(client.responses.stream("hi"))
            assert events[-1].type == "response.failed"
            assert events[-1].response.error.message == "the cable"

    asyncio.run(check())


@each_way
def test_closing_a_stream_that_comes_as_it_is_made_stops_the_model(way: str, configured: Configured) -> None:
    async def check() -> None:
        async with served(way, configured({"content": "word " * 1000, "delay": 0.02, "repeat": 2})) as (
            client,
            app,
        ):
            for number, stream in enumerate(
                (client.chat.stream("hi", model="m"), client.responses.stream("hi")), 1
            ):
                async for _ in each_of(stream):
                    break
                await value(stream.aclose() if hasattr(stream, "aclose") else stream.close())
                for _ in range(100):
                    if scripted(app).cancelled == number:
                        break
                    await asyncio.sleep(0.02)
                assert scripted(app).cancelled == number

    asyncio.run(check())


def test_a_stream_is_closed_by_with(configured: Configured) -> None:
    app = create_app(configured({"content": "word " * 1000, "delay": 0.02}))
    with Client(app=app) as client:
        with client.responses.stream("hi") as events:
            assert next(events).type == "response.created"
        assert scripted(app).cancelled == 1


# ---------------------------------------------------------------- keys, time, and beginnings


def test_a_key_is_sent(configured: Configured) -> None:
    keyed = {"server": {"api_keys": ["sesame"]}}
    with serve(configured("hello", **keyed)) as running:
        with Client(running.url, api_key="sesame") as client:
            assert client.chat("hi", model="m").text == "hello"
        with Client(running.url) as client, pytest.raises(Unauthorized, match="a valid API key is needed"):
            client.models.list()


@pytest.mark.parametrize("way", ["http", "process"])
def test_a_server_that_takes_too_long_is_an_error(way: str, configured: Configured) -> None:
    config = configured({"content": "late", "delay": 3})
    if way == "process":
        with Client(app=create_app(config), timeout=0.2) as client, pytest.raises(TimedOut):
            client.chat("hi", model="m")
    else:
        with (
            serve(config) as running,
            Client(running.url, timeout=0.2) as client,
            pytest.raises(TimedOut, match=f"no answer from {running.url} in time"),
        ):
            client.chat("hi", model="m")


def test_no_server_is_an_error_that_names_the_address() -> None:
    with Client("http://127.0.0.1:9", retries=0) as client:
        with pytest.raises(ConnectionFailed, match="no answer from http://127.0.0.1:9") as failed:
            client.health()
        assert not failed.value.sent


def test_an_application_that_cannot_start_says_why(configured: Configured) -> None:
    config = configured(defaults={"model": "test/nothing"})
    with pytest.raises(ConfigError, match=r"defaults\.model"):
        Client(app=create_app(config))

    async def check() -> None:
        async with AsyncClient(app=create_app(config)) as client:
            with pytest.raises(ConfigError, match=r"defaults\.model"):
                await client.health()

    asyncio.run(check())


def test_an_application_is_stopped_with_its_client(configured: Configured) -> None:
    app = create_app(configured("hi"))
    client = Client(app=app)
    assert client.health().status == "OK"
    client.close()
    client.close()
    assert app.state.stack.store is not None
    with pytest.raises(RuntimeError, match="closed"):
        client.health()


def test_many_threads_share_a_client(local: Callable[..., Client]) -> None:
    async def check() -> list[str]:
        client = local({"content": "same", "repeat": 20})
        calls = [asyncio.to_thread(client.chat, f"{n}", model="m") for n in range(20)]
        return [reply.text for reply in await asyncio.gather(*calls)]

    assert asyncio.run(check()) == ["same"] * 20


def test_what_a_shield_withholds_is_told(local: Callable[..., Client]) -> None:
    reply = local("a canary sings", **GUARD).chat("hi", model="m")
    assert reply.choices[0].finish_reason == "content_filter"
    assert reply.text == reply.refusal and "Withheld by the safety policy" in reply.text
    assert reply.choices[0].safety and reply.choices[0].safety.shield == "bird"


def test_a_refusal_of_a_server_behind_is_an_error_of_its_own() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        body = b'{"error": {"message": "no", "type": "invalid_request_error", "code": "content_filter"}}'
        await send({"type": "http.response.start", "status": 400, "headers": []})
        await send({"type": "http.response.body", "body": body})

    async def check() -> None:
        client = AsyncClient()
        client.http = client.wire.http = httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://x"
        )
        with pytest.raises(Refused, match="no"):
            await client.chat("hi", model="m")
        await client.aclose()

    asyncio.run(check())


def test_what_a_limit_refuses_says_when_to_come_again(configured: Configured) -> None:
    full = configured("a", turns={"workers": 0, "queue": 0})
    with Client(app=create_app(full), retries=0) as client, pytest.raises(RateLimited) as refused:
        client.responses.create("hi", background=True)
    assert refused.value.retry_after == 5 and refused.value.code == "queue_full"

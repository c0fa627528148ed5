"""The `openai` provider reads streams from real sockets: whole, broken, slow, sloppy and given up."""

import asyncio
import gzip
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from llama_stack_lite.answer import chat_completion, text_completion
from llama_stack_lite.api.inference import ChatChunk, ChatCompletion, CompletionRequest
from llama_stack_lite.errors import UpstreamError, UpstreamTimeout
from tests.support.speaking import (
    ANSWER,
    CHUNKED,
    DONE,
    SAID,
    USAGE,
    WHOLE,
    ask,
    chat,
    chunked,
    frame,
    frames,
    provider,
    refusal,
    saying,
)
from tests.support.upstream import STREAM, Exchange

FRAMINGS = {
    "plain": [WHOLE],
    "CR LF": [WHOLE.replace(b"\n", b"\r\n")],
    "CR": [WHOLE.replace(b"\n", b"\r")],
    "a byte at a time": [bytes([byte]) for byte in WHOLE],
    "CR LF, a byte at a time": [bytes([byte]) for byte in WHOLE.replace(b"\n", b"\r\n")],
    "no space": [WHOLE.replace(b"data: ", b"data:")],
    "comments and events": [b": keep-alive\n\nevent: x\nid: 7\nretry: 5\n" + WHOLE + b": bye\n\n"],
    "data in several lines": [WHOLE.replace(b'"choices"', b'\ndata: "choices"')],
    "no [DONE]": [frames(*ANSWER)],
    "no last blank line": [frames(*ANSWER).rstrip()],
    "more behind [DONE]": [WHOLE, b"data: nonsense\n\n"],
}


@pytest.mark.parametrize("blocks", FRAMINGS.values(), ids=FRAMINGS)
def test_every_framing_of_a_stream_is_read(blocks: list[bytes]) -> None:
    found = chat(saying(STREAM, *blocks))
    assert found.choices[0].message.content == SAID
    assert found.choices[0].finish_reason == "stop"
    assert found.usage and found.usage.model_dump() == USAGE


@pytest.mark.parametrize(
    ("said", "stop"),
    [
        ({"stop_reason": "END"}, "END"),  # vLLM
        ({"matched_stop": "END"}, "END"),  # SGLang
        ({"stop_reason": 128009}, None),
        ({"matched_stop": 128009}, None),
        ({"stop_reason": None}, None),
        ({}, None),
    ],
)
def test_a_server_may_say_which_stop_string_it_was(said: dict[str, Any], stop: str | None) -> None:
    last = frame(delta={}, finish_reason="stop", **said)
    assert chat(saying(STREAM, frames(ANSWER[0], last) + DONE)).choices[0].stop_reason == stop


def test_a_compressed_stream_is_read() -> None:
    head = STREAM.replace(b"connection", b"content-encoding: gzip\r\nconnection")
    assert chat(saying(head, gzip.compress(WHOLE))).choices[0].message.content == SAID


NO_ANSWERS = {
    "garbage": (b"data: {nonsense\n\n", "no OpenAI answer: {nonsense"),
    "a number": (b"data: 7\n\n", "no OpenAI answer: 7"),
    "a page": (b"<html>hello</html>", "middle of an answer"),
    "nothing": (b"", "middle of an answer"),
    "only [DONE]": (DONE, "middle of an answer"),
    "no finish": (frames(*ANSWER[:2]) + DONE, "middle of an answer"),
    "a cut frame": (frames(*ANSWER[:2])[:-20], "no OpenAI answer"),
    "an error": (
        frames(ANSWER[0], {"error": {"message": "out of memory"}}),
        "broke its answer off: out of memory",
    ),
    "an error as text": (frames({"error": "out of memory"}), "broke its answer off: out of memory"),
    "llama.cpp's error": (b'error: {"code": 500, "message": "slot lost"}\n\n', "slot lost"),
    "an unknown finish": (frames(frame(delta={}, finish_reason="error")), "no OpenAI answer"),
    "choices that are none": (frames({"choices": [7]}), "no OpenAI answer"),
    "a list for an index": (frames({"choices": [{"index": [1]}]}), "no OpenAI answer"),
    "arguments as an object": (
        frames(frame(delta={"tool_calls": [{"function": {"name": "f", "arguments": {}}}]})),
        "no OpenAI answer",
    ),
}


@pytest.mark.parametrize(("body", "text"), NO_ANSWERS.values(), ids=NO_ANSWERS)
def test_what_is_no_answer_is_an_upstream_error(body: bytes, text: str) -> None:
    error = refusal(saying(STREAM, body))
    assert type(error) is UpstreamError and text in str(error)


@pytest.mark.parametrize("is_chunked", [False, True])
def test_a_connection_cut_in_mid_stream_is_an_upstream_error(is_chunked: bool) -> None:
    async def cut(exchange: Exchange) -> None:
        begun = frames(*ANSWER[:2])
        await exchange.send(CHUNKED + chunked(begun) if is_chunked else STREAM + begun)
        await asyncio.sleep(0.05)
        exchange.reset()

    async def main() -> list[ChatChunk]:
        chunks = []
        async with provider(cut) as (made, _):
            with pytest.raises(UpstreamError, match="dropped the connection|in the middle of an answer"):
                async for chunk in made.chat("m", ask(stream=True)):
                    chunks.append(chunk)
        return chunks

    assert len(asyncio.run(main())) == 2, "what came before the cut is not lost"


def test_a_connection_cut_before_the_answer_is_an_upstream_error() -> None:
    async def cut(exchange: Exchange) -> None:
        exchange.reset()

    assert type(refusal(cut)) is UpstreamError


SILENT_AFTER = {
    "nothing": b"",
    "a head": STREAM,
    "a beginning": STREAM + frames(*ANSWER[:2]),
    "the head of a refusal": STREAM.replace(b"200", b"500"),
}


@pytest.mark.parametrize("before", SILENT_AFTER.values(), ids=SILENT_AFTER)
def test_silence_is_a_timeout(before: bytes) -> None:
    async def silent(exchange: Exchange) -> None:
        await exchange.send(before)
        await exchange.left()

    started = time.monotonic()
    error = refusal(silent, timeout=0.2)
    assert isinstance(error, UpstreamTimeout) and "`timeout` is 0.2 s" in str(error)
    assert time.monotonic() - started < 2


def test_a_slow_answer_that_goes_on_is_no_timeout() -> None:
    async def slowly(exchange: Exchange) -> None:
        for block in (STREAM, *(frames(each) for each in ANSWER)):
            await exchange.send(block)
            await asyncio.sleep(0.15)

    assert chat(slowly, timeout=0.4).choices[0].message.content == SAID


def test_a_reader_that_takes_its_time_is_no_silence() -> None:
    async def main() -> list[ChatChunk]:
        chunks = []
        async with provider(saying(STREAM, *(frames(each) for each in ANSWER)), timeout=0.1) as (made, _):
            async for chunk in made.chat("m", ask(stream=True)):
                chunks.append(chunk)
                await asyncio.sleep(0.15)
        return chunks

    assert len(asyncio.run(main())) == 4


def test_closing_the_stream_hangs_up_on_the_upstream() -> None:
    left: list[float] = []

    async def endless(exchange: Exchange) -> None:
        await exchange.send(STREAM + frames(ANSWER[0]))
        await exchange.left()
        left.append(time.monotonic())

    async def main() -> None:
        async with provider(endless) as (made, server):
            chunks = made.chat("m", ask())
            await anext(chunks)
            closed = time.monotonic()
            await chunks.aclose()
            await asyncio.sleep(0.3)
            assert left and left[0] - closed < 0.3
            assert server.connections == 1

    asyncio.run(main())


@pytest.mark.parametrize("call", ["chat", "embed"])
def test_a_cancelled_call_hangs_up_before_the_answer_begins(call: str) -> None:
    async def main() -> None:
        asked, gone = asyncio.Event(), asyncio.Event()

        async def silent(exchange: Exchange) -> None:
            asked.set()
            await exchange.left()
            gone.set()

        async with provider(silent) as (made, _):
            work = chat_completion(made.chat("m", ask())) if call == "chat" else made.embed("m", ["x"])
            task = asyncio.create_task(work)
            await asked.wait()
            task.cancel()
            await asyncio.wait_for(gone.wait(), 0.3)
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(main())


def test_what_servers_write_in_several_ways_comes_out_in_one() -> None:
    sloppy = [
        frame(delta={"role": "assistant", "content": None, "reasoning": "Hmm. ", "tool_calls": None}),
        frame(delta={"role": "assistant", "content": "a", "refusal": None}, usage=None),
        frame(delta={"role": "assistant", "content": "b"}) | {"usage": USAGE, "service_tier": "flex"},
        frame(delta={"role": "assistant"}, finish_reason="eos_token"),
        frame(delta={"role": "assistant", "content": ""}, finish_reason="eos_token"),
        {"choices": [], "prompt_filter_results": []},
    ]

    async def main() -> list[ChatChunk]:
        async with provider(saying(STREAM, frames(*sloppy))) as (made, _):
            return [chunk async for chunk in made.chat("m", ask())]

    chunks = asyncio.run(main())
    assert [choice.delta for chunk in chunks for choice in chunk.choices] == [
        {"role": "assistant", "reasoning_content": "Hmm. "},
        {"content": "a"},
        {"content": "b"},
    ]
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None, None, "stop"]
    assert chunks[-1].choices == [] and chunks[-1].usage and chunks[-1].usage.model_dump() == USAGE
    assert {(chunk.id, chunk.model, chunk.created) for chunk in chunks} == {("", "", 0)}
    assert chunks[2].model_extra == {"service_tier": "flex"}


def test_text_that_came_at_once_is_in_pieces_only_where_they_are_seen() -> None:
    logprobs = {"content": [{"token": "d", "logprob": -0.5, "bytes": None, "top_logprobs": []}]}
    stream = [
        frame(delta={"role": "assistant", "content": "a"}),
        frame(delta={"content": "b"}),
        {"choices": [{"index": 1, "delta": {"content": "x"}}]},
        frame(delta={"content": "c"}),
        frame(delta={"content": "d"}, logprobs=logprobs),
        frame(delta={"content": ""}),
        frame(delta={"content": "e"}, finish_reason="stop"),
        frame(delta={"content": "behind the end"}),
        {"choices": [{"index": 1, "delta": {"content": "y"}}], "usage": USAGE},
        {"choices": [{"index": 1, "delta": {"content": "z"}, "finish_reason": "length"}]},
    ]

    async def pieces(stream_wanted: bool) -> tuple[list[str], ChatCompletion]:
        async with provider(saying(STREAM, frames(*stream) + DONE)) as (made, _):
            chunks = [chunk async for chunk in made.chat("m", ask(stream=stream_wanted, n=2))]
        said = [choice.delta.get("content") or "" for chunk in chunks for choice in chunk.choices]

        async def again() -> AsyncIterator[ChatChunk]:
            for chunk in chunks:
                yield chunk

        return said, await chat_completion(again())

    seen, streamed = asyncio.run(pieces(True))
    joined, whole = asyncio.run(pieces(False))
    assert seen == ["a", "b", "x", "c", "d", "", "e", "y", "z"]
    assert joined == ["ab", "x", "c", "d", "", "e", "y", "z"]
    assert whole == streamed
    assert [choice.message.content for choice in whole.choices] == ["abcde", "xyz"]
    assert [choice.finish_reason for choice in whole.choices] == ["stop", "length"]
    assert whole.usage and whole.usage.model_dump() == USAGE


def test_an_end_that_came_with_the_text_is_in_its_chunk() -> None:
    logprobs = {"content": [{"token": "c", "logprob": -0.5, "bytes": None, "top_logprobs": []}]}
    other = {"index": 1, "delta": {"content": "x"}}
    streams = {
        "its own": [
            frame(delta={"content": "a"}, logprobs=logprobs),
            frame(delta={"content": "b"}),
            frame(delta={"content": ""}, finish_reason="eos", matched_stop="!", logprobs=None),
        ],
        "with a score": [
            frame(delta={"content": "ab"}),
            frame(delta={}, finish_reason="stop", logprobs=logprobs),
        ],
        "another's": [
            frame(delta={"content": "ab"}),
            {"choices": [other]},
            frame(delta={}, finish_reason="stop"),
            {"choices": [{"index": 1, "delta": {}, "finish_reason": "length"}]},
        ],
    }

    async def pieces(stream: list[dict[str, Any]]) -> list[ChatChunk]:
        async with provider(saying(STREAM, frames(*stream) + DONE)) as (made, _):
            return [chunk async for chunk in made.chat("m", ask(n=2))]

    found = {name: asyncio.run(pieces(stream)) for name, stream in streams.items()}
    [chunk] = found["its own"]
    [choice] = chunk.choices
    assert choice.delta == {"role": "assistant", "content": "ab"} and choice.logprobs
    assert (choice.finish_reason, choice.stop_reason) == ("stop", "!")
    scored = [chunk.choices[0] for chunk in found["with a score"]]
    assert [(bool(each.logprobs), each.finish_reason) for each in scored] == [(False, None), (True, "stop")]
    ends = [(chunk.choices[0].index, chunk.choices[0].finish_reason) for chunk in found["another's"]]
    assert ends == [(0, None), (1, None), (0, "stop"), (1, "length")]


def test_tool_calls_refusals_and_logprobs_come_through() -> None:
    first = {"index": 0, "id": "c1", "type": "function", "function": {"name": "f", "arguments": ""}}
    second = {"index": 1, "id": "c2", "type": "function", "function": {"name": "g", "arguments": "{}"}}
    logprobs = {"content": [{"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": []}]}
    usage = USAGE | {"prompt_tokens_details": {"cached_tokens": 2, "audio_tokens": 0}}
    found = chat(
        saying(
            STREAM,
            frames(
                frame(delta={"role": "assistant", "refusal": "No"}, logprobs=logprobs),
                frame(delta={"tool_calls": [first]}),
                frame(delta={"tool_calls": [{"index": 0, "function": {"arguments": '{"a": '}}]}),
                frame(delta={"tool_calls": [{"index": 0, "function": {"arguments": "1}"}}, second]}),
                frame(delta={}, finish_reason="function_call"),
                {"choices": [], "usage": usage},
            ),
        )
    )
    choice = found.choices[0]
    assert [call.model_dump() for call in choice.message.tool_calls or []] == [
        {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}},
        {"id": "c2", "type": "function", "function": {"name": "g", "arguments": "{}"}},
    ]
    assert choice.message.refusal == "No" and choice.finish_reason == "tool_calls"
    assert choice.logprobs and choice.logprobs.model_dump(exclude_none=True) == logprobs
    assert found.usage and found.usage.model_dump() == usage


def test_plain_completions() -> None:
    stream: list[dict[str, Any]] = [
        {"choices": [{"index": 1, "text": "b", "logprobs": None}]},
        {"choices": [{"index": 0, "text": "a"}, {"index": 1, "text": None, "finish_reason": "length"}]},
        {"choices": [{"index": 0, "text": "", "finish_reason": "stop"}]},
        {"choices": [], "usage": USAGE},
    ]

    async def main() -> None:
        async with provider(saying(STREAM, frames(*stream), DONE)) as (made, server):
            request = CompletionRequest(model="x", prompt=[[1, 2], [3]], max_tokens=4)
            found = await text_completion(made.complete("m", request))
            assert [(c.text, c.finish_reason) for c in found.choices] == [("a", "stop"), ("b", "length")]
            asked = server.requests[0]
            assert asked.path == "/v1/completions"
            assert asked.body["prompt"] == [[1, 2], [3]] and asked.body["max_tokens"] == 4

    asyncio.run(main())


def test_connections_are_used_again() -> None:
    async def main() -> None:
        async def answer(exchange: Exchange) -> None:
            await exchange.send(CHUNKED + chunked(WHOLE))
            await asyncio.sleep(0.01)
            await exchange.send(b"0\r\n\r\n")

        async with provider(answer, keep_alive=True) as (made, server):
            for _ in range(5):
                await chat_completion(made.chat("m", ask()))
            await asyncio.gather(*[chat_completion(made.chat("m", ask())) for _ in range(3)])
            assert len(server.requests) == 8 and server.connections == 3

    asyncio.run(main())


def test_many_streams_do_not_mix() -> None:
    async def echo(exchange: Exchange) -> None:
        text = exchange.body["messages"][0]["content"]
        await exchange.send(STREAM)
        for word in text.split():
            await exchange.send(frames(frame(delta={"content": f"{word} "})))
            await asyncio.sleep(0.001)
        await exchange.send(frames(frame(delta={}, finish_reason="stop")) + DONE)

    async def main() -> None:
        async with provider(echo) as (made, _):
            texts = [f"{number} " * 20 for number in range(30)]
            requests = [ask(messages=[{"role": "user", "content": text}]) for text in texts]
            found = await asyncio.gather(*[chat_completion(made.chat("m", each)) for each in requests])
            assert [each.choices[0].message.content for each in found] == texts

    asyncio.run(main())

"""One turn: the model is asked, its tools run, and it is asked again, until it has answered."""

import asyncio
import math
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from typing import Any, Literal

from llama_stack_lite import enforcement
from llama_stack_lite.api.agents import PREFIX, Agent
from llama_stack_lite.api.ids import new_id
from llama_stack_lite.api.inference import ChatChunk, ChatRequest, Message
from llama_stack_lite.api.responses import (
    Event,
    Incomplete,
    Item,
    ItemReference,
    MessageItem,
    Response,
    ResponseRequest,
    Speech,
    Writing,
    conversation,
)
from llama_stack_lite.api.safety import Blocked
from llama_stack_lite.errors import (
    ContextOverflow,
    InvalidRequest,
    NotFound,
    StackError,
    Unavailable,
    UpstreamError,
)
from llama_stack_lite.safety.holding import begun
from llama_stack_lite.safety.texts import strings
from llama_stack_lite.stack import Stack
from llama_stack_lite.state import archive, journal, prompts
from llama_stack_lite.state.archive import Kept
from llama_stack_lite.state.journal import LeaseLost, Record, Told

from .failing import failure, told
from .protocols import Journal, Tools
from .reading import readable

Ending = Literal["completed", "incomplete", "failed", "cancelled"]
# what a chat's fields are called here
PARAMS = {
    "messages": "input",
    "max_completion_tokens": "max_output_tokens",
    "response_format": "text.format",
    "reasoning_effort": "reasoning.effort",
}


@dataclass(kw_only=True)
class Turn(Writing):
    """A turn in progress, whose response is written.

    `before` is what came before the answer: the history, then the input. `session` tells conversations
    apart for tools. `agent` is whose turn it is, where that has a name; `above` are those whose tool it is.
    """

    stack: Stack
    before: list[Item]
    session: str
    system: str | None = None
    tools: Tools | None = None
    journal: Journal | None = None
    begun: bool = False
    deadline: float = 0
    corrections: list[Message] = field(default_factory=list)
    dropped: int = 0
    agent: Agent | None = None
    above: tuple[str, ...] = ()
    error: StackError | None = None  # that it failed with
    lost: range = range(0)  # of the output, what was being said when a server stopped: it is said again
    keeping: "tuple[asyncio.Task[None], list[Event]] | None" = None

    async def blocked(self) -> Blocked | None:
        """What a shield finds in the request, before anything is done for it."""
        if not (self.stack.judge.chatting or self.request.guardrails):
            return None
        beside, guards = "\n".join(strings(self.request.tools)), self.request.guardrails
        if beside and (found := await enforcement.judged(self.stack, "input", beside, guardrails=guards)):
            return found
        return await enforcement.asked(self.stack, self.asks())

    def withhold(self, blocked: Blocked) -> None:
        """What was flagged is neither kept nor told: not the input, and not what stands beside it."""
        plain = Response.model_fields
        for name in ("instructions", "prompt", "text", "tools", "tool_choice"):
            setattr(self.response, name, plain[name].get_default(call_default_factory=True))
        if self.journal:
            self.journal.withhold(blocked.refusal())

    async def opened(self) -> list[Event]:
        """The first events, once: from here on the turn is kept, and what fails is told by an event."""
        if self.begun:
            return []
        self.begun = True
        if self.journal:
            await self.journal.begin(self.response)
        return [self.whole("response.created"), self.whole("response.in_progress")]

    async def save(self, places: list[int], events: list[Event]) -> None:
        """Keep the items of those places, before anybody sees the events that tell of them."""
        if self.journal:
            await self.journal.save(self.response, places, events)

    def keep(self, places: list[int], events: list[Event]) -> None:
        """Begin to save, while the turn goes on; nobody sees the events before `settled` gives them."""
        task = asyncio.create_task(self.save(places, events))
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        self.keeping = task, events

    async def settled(self) -> list[Event]:
        """The events of what is kept by now, if it was not yet."""
        keeping, self.keeping = self.keeping, None
        if keeping:
            await keeping[0]
        return keeping[1] if keeping else []

    async def ended(self, status: Ending, **fields: Any) -> Event:
        """The last event; what it says is kept first."""
        for name, value in {**fields, "status": status}.items():
            setattr(self.response, name, value)
        self.response.completed_at = int(time.time()) if status == "completed" else None
        self.cut()
        event = self.whole("response.failed" if status == "cancelled" else f"response.{status}")
        if self.journal:
            await self.journal.end(self.response, event)
        return event

    def used(self) -> int:
        """How many tokens the model has written so far."""
        return self.response.usage.output_tokens if self.response.usage else 0

    def asks(self) -> ChatRequest:
        """What the model is asked next."""
        offer = self.tools.offer if self.tools else {}
        model = self.agent and self.agent.model or self.response.model
        return self.request.as_chat(model, self.messages(), used=self.used(), offer=offer)

    def messages(self) -> list[Message]:
        system = [Message(role="system", content=self.system)] if self.system else []
        output = [item for place, item in enumerate(self.response.output) if place not in self.lost]
        said = [*self.before[self.dropped :], *output]
        found = [*system, *conversation(said), *self.corrections]
        if not found:
            raise InvalidRequest("input: there is nothing to answer", param="input")
        return found


async def run(turn: Turn) -> AsyncGenerator[Event, None]:
    """The events of a turn, to its end. A `StackError` is raised only before the first of them."""
    turn.deadline = asyncio.get_running_loop().time() + turn.stack.config.turns.timeout
    try:
        async with aclosing(_steps(turn)) as events:
            async for event in events:
                yield event
    except LeaseLost:
        raise
    except Exception as error:
        turn.error = told(error, timeout=turn.stack.config.turns.timeout)
        if not turn.begun:
            raise turn.error from error
        with suppress(StackError):  # it would be this very error
            for event in await turn.settled():
                yield event
        yield await turn.ended("failed", error=failure(turn.error))


STOPPED: dict[str, Any] = {"status": "incomplete", "incomplete_details": Incomplete(reason="max_messages")}


async def _steps(turn: Turn) -> AsyncGenerator[Event, None]:
    if turn.tools:
        async with aclosing(_prepared(turn)) as events:
            async for event in events:
                yield event
        if turn.response.ended():
            return
    for _ in range(turn.agent and turn.agent.max_steps or turn.stack.config.turns.max_steps):
        speech = Speech(turn, turn.tools.clients if turn.tools else ())
        async with aclosing(_step(turn, speech)) as events:
            async for event in events:
                yield event
        if ending := _ending(turn, speech):
            break
    for event in [*await turn.settled(), await turn.ended(**ending or STOPPED)]:
        yield event


async def _prepared(turn: Turn) -> AsyncGenerator[Event, None]:
    """What comes before the model is asked; no server is asked, and no approved call made, unjudged."""
    assert turn.tools
    if blocked := await turn.blocked():
        async for event in _refused(turn, blocked):
            yield event
        return
    async with aclosing(turn.tools.prepared()) as events:
        async for event in events:
            yield event
    for event in await turn.settled():
        yield event
    if turn.tools.waiting:
        yield await turn.ended("completed")


def _flagged(chunk: ChatChunk) -> Blocked | None:
    """What a shield found in the request, if that is all the answer there is."""
    found = [choice.safety for choice in chunk.choices if choice.safety]
    return found[0] if found and found[0].touchpoint in ("input", "tool_result") else None


async def _refused(turn: Turn, blocked: Blocked) -> AsyncGenerator[Event, None]:
    turn.withhold(blocked)
    for event in await turn.opened():
        yield event
    for event in [*turn.refused(blocked.refusal()), *turn.closed()]:
        yield event
    reason = Incomplete(reason="content_filter")
    yield await turn.ended("incomplete", incomplete_details=reason, safety=blocked)


async def _step(turn: Turn, speech: Speech) -> AsyncGenerator[Event, None]:
    """Ask the model once, and run what it calls."""
    async with aclosing(_spoken(turn, speech)) as events:
        async for event in events:
            yield event
    if speech.calls and not speech.cut():
        if not turn.tools:
            raise UpstreamError(f"the model called `{speech.calls[0].name}`, and was offered no tool")
        async with aclosing(turn.tools.run(speech.calls)) as events:
            async for event in events:
                yield event


async def _spoken(turn: Turn, speech: Speech) -> AsyncGenerator[Event, None]:
    """What the model says; it is asked while the results that it reads are still being kept."""
    asked = _asked(turn)
    async with begun(asked) if turn.keeping else aclosing(asked) as chunks:
        for event in await turn.settled():
            yield event
        async for chunk in chunks:
            if not turn.begun and (flagged := _flagged(chunk)):
                turn.withhold(flagged)
            for event in await turn.opened():
                yield event
            for event in speech.heard(chunk):
                yield event
    if speech.finish is None:
        raise UpstreamError("the model's stream ended without an answer")
    for event in speech.ended():
        yield event


def _ending(turn: Turn, speech: Speech) -> dict[str, Any] | None:
    """How the turn ends after a step; None where the model is to be asked again."""
    if speech.safety or speech.finish == "content_filter":
        reason = Incomplete(reason="content_filter")
        return {"status": "incomplete", "incomplete_details": reason, "safety": speech.safety}
    done = not speech.calls or speech.asked_client or not turn.tools or turn.tools.waiting
    if done and not speech.cut():
        return {"status": "completed"}
    if speech.cut() or turn.used() >= (turn.request.max_output_tokens or math.inf):
        return {"status": "incomplete", "incomplete_details": Incomplete(reason="max_output_tokens")}
    return None


async def _asked(turn: Turn) -> AsyncGenerator[ChatChunk, None]:
    """The model's chunks; with `truncation: auto` it is asked again with less where all does not fit."""
    while True:
        try:
            async with aclosing(enforcement.chat(turn.stack, turn.asks())) as chunks:
                while True:
                    async with asyncio.timeout_at(turn.deadline):
                        chunk = await anext(chunks, None)
                    if chunk is None:
                        return
                    yield chunk
        except StackError as error:
            if error.code != ContextOverflow.code or not _shortened(turn):
                error.param = PARAMS.get(error.param or "", error.param)
                raise


def _shortened(turn: Turn) -> bool:
    """Leave the oldest exchange out, up to the next message of the user; False where none is left."""
    if turn.request.truncation != "auto":
        return False
    for place in range(turn.dropped + 1, len(turn.before)):
        item = turn.before[place]
        if isinstance(item, MessageItem) and item.role == "user":
            turn.dropped = turn.response.dropped_items = place
            return True
    return False


Taking = Callable[[Turn, Kept], Awaitable[None]]  # puts a turn into the hands of the agent it is asked of


class Turns:
    """Begins turns, in the name of one server process, which is their `worker`."""

    def __init__(self, stack: Stack, toolbox: Callable[[Turn], Tools], told: Told, named: Taking) -> None:
        self.stack = stack
        self.store = stack.store
        self.toolbox = toolbox
        self.told = told
        self.named = named
        self.following: set[str] = set()  # the responses of turns that end with their clients
        self.worker = new_id("worker")

    async def begin(self, request: ResponseRequest) -> Turn:
        """A turn as a request asks for it, with all that came before; nothing is kept yet."""
        history, session = await journal.history(self.store, request)
        given = journal.told_apart(await self._found(request.items(), history), history)
        stored = request.store is not False
        response = Response.begun(
            request, id=new_id("resp"), created_at=int(time.time()), store=stored, model=self._model(request)
        )
        kept = Kept(response, request, given, session=session or response.id)
        return await self.made(kept, self.record(kept) if stored else None, history)

    async def again(self, kept: Kept) -> Turn:
        """A turn of the background, as far as it had come."""
        history, _ = await journal.history(self.store, kept.request)
        turn = await self.made(kept, self.record(kept), history)
        turn.begun, turn.number = True, kept.number
        return turn

    def record(self, kept: Kept) -> Record:
        lease = self.stack.config.turns.lease
        return Record(self.store, kept, worker=self.worker, lease=lease, told=self.told)

    async def made(self, kept: Kept, record: Record | None, history: list[Item]) -> Turn:
        request, before = kept.request, [*history, *kept.input]
        turn = Turn(
            stack=self.stack,
            request=request,
            response=kept.response,
            before=await readable(self.stack, before) if any(item.indirect() for item in before) else before,
            session=kept.session,
            system=await self._system(request),
            journal=record,
        )
        if (request.model or "").startswith(PREFIX):
            await self.named(turn, kept)
        if turn.request.tools:
            turn.tools = self.toolbox(turn)
        return turn

    def _model(self, request: ResponseRequest) -> str:
        name = request.model or self.stack.config.defaults.model
        if name is None:
            raise InvalidRequest("model: say which, as this server has no default", param="model")
        return name if name.startswith(PREFIX) else self.stack.model(name, "chat").id

    async def _found(self, items: list[Item], history: list[Item]) -> list[Item]:
        """The items, each reference replaced by what it refers to."""
        known = {item.id for item in history}
        found: list[Item] = []
        for each in items:
            if not isinstance(each, ItemReference):
                found.append(each)
            elif each.id not in known:  # else the model reads it already
                item = await archive.item(self.store, each.id)
                if item is None:
                    raise NotFound("item", each.id, param="input")
                found.append(item)
        return found

    async def _system(self, request: ResponseRequest) -> str | None:
        """What the model is told first: the stored prompt, then the instructions."""
        parts = [request.instructions]
        if prompt := request.prompt:
            text = await prompts.rendered(
                self.store, prompt.id, version=prompt.version, variables=prompt.texts()
            )
            parts.insert(0, text)
        return "\n\n".join(part for part in parts if part) or None

    async def follow(self, asked: ResponseRequest | Turn) -> AsyncGenerator[Event, None]:
        """The events of a turn that ends with its client, if it has not ended before."""
        turn = asked if isinstance(asked, Turn) else await self.begin(asked)
        self.following.add(turn.response.id)
        try:
            async with aclosing(run(turn)) as events:
                async for event in events:
                    yield event
        finally:
            if turn.begun and not turn.response.ended():
                with suppress(Unavailable):  # whoever takes the lease ends it
                    await turn.ended("cancelled")
            self.following.discard(turn.response.id)
            if turn.tools:
                await turn.tools.aclose()

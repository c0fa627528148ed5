"""An agent: a model that calls Python functions, until it has answered."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from .calls import Resource, W_co, call, streaming
from .client import API
from .errors import TooManyTurns, TurnFailed
from .items import (
    ENDS,
    FunctionCall,
    FunctionCallOutput,
    Item,
    MCPApprovalRequest,
    Response,
    ResponseEvent,
    Usage,
)
from .options import AgentOptions, Input, Json, plain
from .resources import Responses
from .telling import AgentEvent, Approval, Done, Result, Turn, told
from .tools import Function, Tool, written
from .wires import Job, Outcome

if TYPE_CHECKING:
    from typing_extensions import Unpack

log = logging.getLogger(__name__)
NOBODY = "nobody is there to approve it: the program that runs this agent gave no `approve`"


Approve = Callable[[Approval], "bool | Awaitable[bool]"]


class Agent(Resource[W_co]):
    """A model, by its name or `agent:<name>`, with instructions and tools.

    - `tools`: Python functions, plain or `async`, which run here, and `{"type": "mcp", ...}` and other
      tools of the server.
    - `approve` is asked about each call of an MCP tool that wants it; without it, none is made.
    - `guardrails`: shields to ask besides those that the operator enforces.
    - `raise_errors`: let what a function raises end the turn; else the model reads of it, and may try again.
    - `max_turns`: how often the model is asked in one turn of the user; then `TooManyTurns`.
    - `store=False`: keep nothing on the server; the conversation is in the session.
    - `options`: anything else that a response may be asked with, such as `temperature`.

    Blocking or awaited, as its client is.
    """

    def __init__(
        self,
        client: API[W_co],
        *,
        model: str | None = None,
        instructions: str | None = None,
        tools: Sequence[Function | Tool | Json] = (),
        approve: Approve | None = None,
        guardrails: Sequence[str] = (),
        raise_errors: bool = False,
        max_turns: int = 16,
        **options: Unpack[AgentOptions],
    ) -> None:
        super().__init__(client.wire)
        self.client = client
        self.approve = approve
        self.raise_errors = raise_errors
        self.max_turns = max_turns
        made = [each if isinstance(each, Tool) else Tool(each) for each in tools if callable(each)]
        self.functions = {each.name: each for each in made}
        if len(self.functions) < len(made):
            raise ValueError("two tools have the same name: give one another by `tool(name=...)`")
        served = [each for each in tools if not callable(each)]
        self.options: dict[str, Any] = {**options, "model": model, "instructions": instructions}
        self.options["tools"] = [each.definition for each in made] + served or None
        self.options["guardrails"] = list(guardrails) or None

    @call
    async def run(self, input: Input) -> Turn:
        """Answer an input that belongs to no conversation."""
        return await Session.run.written(self.session(), input)

    @streaming
    async def stream(self, input: Input) -> AsyncGenerator[AgentEvent, None]:
        """The same, as it comes: the last event is `Done`."""
        async with aclosing(Session.stream.written(self.session(), input)) as events:
            async for event in events:
                yield event

    def session(self, *, conversation: str | None = None) -> Session[W_co]:
        """A conversation from its beginning, or one that the server keeps under that id."""
        return Session(self, conversation=conversation)


class Session(Resource[W_co]):
    """A conversation with an agent. A turn that ends in an error is as if it had not been begun.

    It goes on by `previous_response_id`; with a `conversation` of the server by that, and with `store=False`
    by `items`, which are all that was said.
    """

    def __init__(self, agent: Agent[W_co], *, conversation: str | None = None) -> None:
        super().__init__(agent.wire)
        self.agent = agent
        self.conversation = conversation
        self.previous_response_id: str | None = None
        self.items: list[Any] = []

    @call
    async def run(self, input: Input) -> Turn:
        """Answer what the user says next."""
        async with aclosing(Session.stream.written(self, input)) as events:
            async for event in events:
                if isinstance(event, Done):
                    return event.turn
        raise AssertionError("a turn ends with `Done`, or with an error")

    @streaming
    async def stream(self, input: Input) -> AsyncGenerator[AgentEvent, None]:
        """The same, as it comes: the last event is `Done`."""
        exchange = Exchange(self, _items(input))
        for left in reversed(range(self.agent.max_turns)):
            async with aclosing(exchange.asked()) as events:
                async for event in events:
                    yield event
            if not exchange.waits:
                self.previous_response_id = exchange.previous
                self.items += exchange.said
                yield Done(exchange.turn())
                return
            if left:
                async with aclosing(exchange.answered()) as events:
                    async for event in events:
                        yield event
        raise TooManyTurns(
            f"the model was asked {self.agent.max_turns} times and still calls tools: raise `max_turns`"
        )


def _items(input: Input) -> list[Any]:
    if isinstance(input, str):
        return [{"type": "message", "role": "user", "content": input}]
    return list(plain(input))


@dataclass
class Exchange:
    """One turn of the user: the model is asked with what is `given`, and again with what its calls gave."""

    session: Session[Any]
    given: list[Any]
    said: list[Any] = field(default_factory=list)  # as JSON, with what the user said
    items: list[Item] = field(default_factory=list)
    usage: Usage = field(default_factory=Usage)
    response: Response | None = None

    def __post_init__(self) -> None:
        self.previous = self.session.previous_response_id
        self.agent = self.session.agent

    def turn(self) -> Turn:
        response = self._response()
        return Turn(response.text, self.items, self.usage, response)

    def _response(self) -> Response:
        assert self.response, "a stream of events ends with the response, or with an error"
        return self.response

    def _output(self) -> list[Item]:
        return self._response().output

    async def asked(self) -> AsyncGenerator[AgentEvent, None]:
        """Ask the model; raises `TurnFailed` where the response does not end well."""
        options = {name: value for name, value in self._options().items() if value is not None}
        stream = Responses.stream.written(self.agent.client.responses, self._input(), **options)
        async with aclosing(stream) as events:
            async for event in events:
                if isinstance(event, ResponseEvent) and event.type in ENDS:
                    self.response = event.response
                for each in told(event):
                    yield each
        response = self._response()
        if response.status in ("failed", "cancelled"):
            message = response.error.message if response.error else f"the response was {response.status}"
            raise TurnFailed(message, response)
        self.said += [*self.given, *plain(response.output)]
        self.items += response.output
        self.usage += response.usage or Usage()
        self.previous = response.id

    def _input(self) -> list[Any]:
        if self.agent.options.get("store", True):
            return self.given
        return [*self.session.items, *self.said, *self.given]

    def _options(self) -> dict[str, Any]:
        options = dict(self.agent.options)
        if self.said:  # a tool that must be called has been
            options.pop("tool_choice", None)
        if self.session.conversation:
            options["conversation"] = self.session.conversation
        elif options.get("store", True) and self.previous:
            options["previous_response_id"] = self.previous
        return options

    @property
    def waits(self) -> bool:
        """Whether the model waits for something of ours: a call, or an approval."""
        ours = [item for item in self._output() if isinstance(item, FunctionCall | MCPApprovalRequest)]
        return bool(ours) and self._response().status == "completed"

    async def answered(self) -> AsyncGenerator[AgentEvent, None]:
        """Ask for approvals and make calls, as the response wants; `given` is then what came of them."""
        self.given = []
        for request in [item for item in self._output() if isinstance(item, MCPApprovalRequest)]:
            approval = Approval(request.id, request.server_label, request.name, _object(request.arguments))
            yield approval
            self.given.append(await self._asked_for(approval))
        calls = [item for item in self._output() if isinstance(item, FunctionCall)]
        results: dict[str, Result] = {}
        async with aclosing(self._made(calls)) as made:
            async for result in made:
                results[result.id] = result
                yield result
        for each in calls:
            output = FunctionCallOutput(call_id=each.call_id, output=results[each.call_id].output)
            self.items.append(output)
            self.given.append(plain(output))

    async def _asked_for(self, approval: Approval) -> dict[str, Any]:
        told = {"type": "mcp_approval_response", "approval_request_id": approval.id}
        if self.agent.approve is None:
            log.warning("a call of %s was not made: %s", approval.name, NOBODY)
            return {**told, "approve": False, "reason": NOBODY}
        async with aclosing(self.agent.wire.run([partial(self.agent.approve, approval)])) as ended:
            answers = [outcome.get() async for outcome in ended]
        return {**told, "approve": bool(answers[0])}

    async def _made(self, calls: list[FunctionCall]) -> AsyncGenerator[Result, None]:
        """Make the calls side by side; yields the result of each as it ends."""
        jobs: list[Job] = []
        of: list[FunctionCall] = []
        for each in calls:
            try:
                jobs.append(self._job(each))
                of.append(each)
            except ValueError as error:
                yield Result(each.call_id, each.name, f"The call was not made: {error}", error=True)
        if jobs:
            async with aclosing(self.agent.wire.run(jobs)) as ended:
                async for outcome in ended:
                    yield self._result(of[outcome.number], outcome)

    def _job(self, made: FunctionCall) -> Job:
        if made.name not in self.agent.functions:
            raise ValueError(f"there is no tool `{made.name}`")
        return self.agent.functions[made.name].job(made.arguments)

    def _result(self, made: FunctionCall, outcome: Outcome) -> Result:
        if self.agent.raise_errors or outcome.error is None:
            return Result(made.call_id, made.name, written(outcome.get()))
        said = f"The call failed: {type(outcome.error).__name__}: {outcome.error}"
        return Result(made.call_id, made.name, said, error=True)


def _object(arguments: str) -> dict[str, Any]:
    """Arguments as a dictionary; what is none is there under `arguments`."""
    try:
        found = json.loads(arguments or "{}")
    except ValueError:
        found = None
    return found if isinstance(found, dict) else {"arguments": arguments}

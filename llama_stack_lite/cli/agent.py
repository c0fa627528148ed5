"""A conversation with an agent of a server: what it says, what it calls, and what it may not call unasked."""

from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from typing import Any

import httpx

from llama_stack_lite.errors import NotFound, StackError, UpstreamError

from .conversation import Note, Question, check, events, unreachable

SHOWN = 100  # characters of what a call answered
CALLS = ("mcp_call", "web_search_call", "file_search_call", "code_interpreter_call")
DELTAS = ("response.output_text.delta", "response.refusal.delta")
ENDS = ("response.completed", "response.incomplete", "response.failed")
NO_FUNCTIONS = "This program runs no functions: go on without."


class AgentConversation:
    """A conversation that the server keeps, with one agent or model at a time.

    It goes on behind the last response that ended; one that was interrupted is forgotten.
    """

    def __init__(self, client: httpx.AsyncClient, model: str, *, system: str | None = None) -> None:
        self.client = client
        self.model = model
        self.system = system
        self.questions: list[Question] = []
        self.finish_reason: str | None = None
        self._previous: str | None = None
        self._open: list[dict[str, Any]] = []  # what was answered already of what waits for the user

    def clear(self) -> None:
        self.questions, self._open, self._previous = [], [], None

    async def choices(self) -> list[str]:
        """The agents there are, as models are named."""
        return [f"agent:{name}" for name in await agents(self.client)]

    async def switch(self, name: str) -> None:
        self.model = await found(self.client, name)
        self.clear()

    async def ask(self, text: str) -> AsyncGenerator[str | Note, None]:
        """Yield the answer piece by piece, and a note for each call; then there may be `questions`.

        Raises `StackError` with the server's own message.
        """
        self.questions, self._open = [], []
        async with aclosing(self._answered([{"role": "user", "content": text}])) as pieces:
            async for piece in pieces:
                yield piece

    async def reply(self, answers: list[bool]) -> AsyncGenerator[str | Note, None]:
        """Go on as `ask` does, with the user's word on each of the `questions`."""
        approvals = [
            {"type": "mcp_approval_response", "approval_request_id": question.id, "approve": answer}
            for question, answer in zip(self.questions, answers, strict=True)
        ]
        given, self.questions, self._open = [*self._open, *approvals], [], []
        async with aclosing(self._answered(given)) as pieces:
            async for piece in pieces:
                yield piece

    async def _answered(self, given: list[dict[str, Any]]) -> AsyncGenerator[str | Note, None]:
        """The answers up to the one that ends the turn, or that waits for the user."""
        while given:
            response: dict[str, Any] = {}
            async with aclosing(self._events(given)) as found:
                async for event in found:
                    for piece in _pieces(event):
                        yield piece
                    if event["type"] in ENDS:
                        response = event["response"]
            self._end(response)
            output = response["output"]
            self.questions = [_question(item) for item in output if item["type"] == "mcp_approval_request"]
            given = [_unavailable(item) for item in output if item["type"] == "function_call"]
            if self.questions:
                self._open, given = given, []

    async def _events(self, given: list[dict[str, Any]]) -> AsyncGenerator[dict[str, Any], None]:
        body = {
            "model": self.model,
            "input": given,
            "stream": True,
            "previous_response_id": self._previous,
            "instructions": self.system,
        }
        sent = {name: value for name, value in body.items() if value is not None}
        try:
            async with aclosing(events(self.client, "responses", sent)) as found:
                async for event in found:
                    yield event
        except httpx.HTTPError as error:
            raise unreachable(self.client, error) from error

    def _end(self, response: dict[str, Any]) -> None:
        if not response:
            raise UpstreamError("the stream broke off before the response had ended")
        if response["status"] not in ("completed", "incomplete"):
            error = response.get("error") or {}
            raise UpstreamError(error.get("message") or f"the response was {response['status']}")
        self._previous = response["id"]
        reason = (response.get("incomplete_details") or {}).get("reason")
        self.finish_reason = "length" if reason in ("max_output_tokens", "max_messages") else reason


def _pieces(event: dict[str, Any]) -> Iterator[str | Note]:
    """What an event shows of itself."""
    kind = event["type"]
    if kind == "error":
        raise UpstreamError(event.get("message") or "the server broke off with an error")
    if kind in DELTAS:
        yield event["delta"]
    if kind not in ("response.output_item.added", "response.output_item.done"):
        return
    item, done = event["item"], kind.endswith("done")
    if item["type"] in CALLS:
        yield Note(f"<- {_came(item)[:SHOWN]}" if done else f"-> {_called(item)}")
    elif item["type"] == "function_call" and done:
        yield Note(f"-> {_called(item)}")


def _called(item: dict[str, Any]) -> str:
    """A call as its program would write it."""
    if item["type"] == "code_interpreter_call":
        return f"python({item.get('code') or ''})"
    if item["type"] == "web_search_call":
        return f"web_search({(item.get('action') or {}).get('query', '')})"
    if item["type"] == "file_search_call":
        return f"file_search({', '.join(item.get('queries') or [])})"
    return f"{item['name']}({item['arguments']})"


def _came(item: dict[str, Any]) -> str:
    """What a call answered, or why it did not; of a search the client is not told more than that it ended."""
    error = item.get("error")
    if isinstance(error, dict):
        content = error.get("content") or error.get("message") or ""
        error = content if isinstance(content, str) else " ".join(each.get("text", "") for each in content)
    return item.get("output") or error or item.get("status") or ""


def _question(item: dict[str, Any]) -> Question:
    return Question(item["id"], item["name"], item["arguments"])


def _unavailable(item: dict[str, Any]) -> dict[str, Any]:
    """The answer to a call of a function that only a program of the agent's own could run."""
    return {"type": "function_call_output", "call_id": item["call_id"], "output": NO_FUNCTIONS}


async def agents(client: httpx.AsyncClient) -> list[str]:
    """The names of the server's first hundred agents."""
    return [str(entry["name"]) for entry in (await _get(client, "agents?limit=100"))["data"]]


async def found(client: httpx.AsyncClient, name: str) -> str:
    """The agent of that name, `name@version` or either behind `agent:`, as a request calls it."""
    name = name.removeprefix("agent:")
    bare, _, version = name.partition("@")
    await _get(client, f"agents/{bare}" + (f"?version={version}" if version else ""))
    return f"agent:{name}"


async def _get(client: httpx.AsyncClient, path: str) -> dict[str, Any]:
    """What the server says of agents; raises `StackError`, also where it has none at all."""
    try:
        response = await client.get(path)
        if response.status_code == httpx.codes.NOT_FOUND and not _ours(response):
            raise StackError(f"{client.base_url} has no agents: its distribution has no `storage`")
        await check(response)
        answer: dict[str, Any] = response.json()
        return answer
    except httpx.HTTPError as error:
        raise unreachable(client, error) from error


def _ours(response: httpx.Response) -> bool:
    """Whether a 404 is about an agent, and not about the path."""
    try:
        return bool(response.json()["error"]["code"] == NotFound.code)
    except (ValueError, KeyError, TypeError):
        return False

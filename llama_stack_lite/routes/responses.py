"""/v1/responses"""

import json
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from pydantic_core import to_json
from starlette.responses import Response as HTTPResponse

from llama_stack_lite import answer
from llama_stack_lite.agent import asides
from llama_stack_lite.agent.agents import Agents
from llama_stack_lite.answer import BodyRoute, Frames
from llama_stack_lite.api.responses import (
    Compaction,
    CompactRequest,
    Deleted,
    InputTokens,
    ItemList,
    Response,
    ResponseRequest,
    TokensRequest,
)
from llama_stack_lite.errors import StackError
from llama_stack_lite.stack import Stack
from llama_stack_lite.state import archive

from .conversations import Include

router = APIRouter(prefix="/v1/responses", tags=["responses"], route_class=BodyRoute)


def _failure(error: StackError) -> bytes:
    told = {"type": "error", "code": error.code, "message": str(error), "param": error.param}
    return f"event: error\ndata: {json.dumps(told | {'sequence_number': 0})}\n\n".encode()


def _agents(http: Request) -> Agents:
    found: Agents = Stack.of(http).agents
    return found


EVENTS = Frames(event=answer.named, failure=_failure, end=b"")


@router.post("", response_model=Response)
async def create(request: ResponseRequest, http: Request) -> Any:
    """Begin a turn: whole, as events with `stream: true`, or later with `background: true`."""
    agents = _agents(http)
    if request.background:
        response = await answer.whole(http, agents.workers.queue(request))
        if request.stream:
            return await answer.stream(http, agents.workers.events(response.id), EVENTS)
        return _json(response.shown(request.include))
    events = agents.turns.follow(request)
    if request.stream:
        return await answer.stream(http, events, EVENTS)
    return _json(await answer.whole(http, answer.last(events)))


def _json(shown: dict[str, Any]) -> HTTPResponse:
    return HTTPResponse(to_json(shown), media_type="application/json")


@router.get("/{response_id}", response_model=Response)
async def get(
    response_id: str,
    http: Request,
    include: Include,
    stream: bool = False,
    starting_after: Annotated[int, Query(ge=0)] | None = None,
) -> Any:
    """A response as it is now; with `stream=true` the events of a background one, from where it was left."""
    if stream:
        after = -1 if starting_after is None else starting_after
        return await answer.stream(http, _agents(http).workers.resumed(response_id, after=after), EVENTS)
    found = await archive.get(_agents(http).stack.store, response_id)
    return _json(found.response.shown(include))


@router.delete("/{response_id}")
async def delete(response_id: str, http: Request) -> Deleted:
    """Forget a response that has ended."""
    await archive.remove(_agents(http).stack.store, response_id)
    return Deleted(id=response_id, object="response")


@router.post("/{response_id}/cancel", response_model=Response)
async def cancel(response_id: str, http: Request) -> Any:
    """End a background response; one that has ended stays as it is."""
    return _json((await _agents(http).workers.cancel(response_id)).shown([]))


@router.get("/{response_id}/input_items")
async def input_items(
    response_id: str,
    http: Request,
    include: Include,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    order: Literal["asc", "desc"] = "desc",
    after: str | None = None,
) -> ItemList:
    """What a response was given, page by page."""
    found = await archive.get(_agents(http).stack.store, response_id)
    ordered = found.input if order == "asc" else found.input[::-1]
    items, more = answer.page(ordered, limit=limit, after=after)
    return ItemList.of(items, include, more=more)


@router.post("/input_tokens")
async def input_tokens(request: TokensRequest, http: Request) -> InputTokens:
    """How many tokens the model would read for a request."""
    return InputTokens(input_tokens=await answer.whole(http, asides.tokens(_agents(http).turns, request)))


@router.post("/compact")
async def compact(request: CompactRequest, http: Request) -> Compaction:
    """A conversation in a few words, as an item that takes its place in later requests."""
    return await answer.whole(http, asides.compacted(_agents(http).turns, request))

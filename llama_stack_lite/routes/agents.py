"""/v1/agents: agents in versions, their turns, and conversations with them"""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel
from starlette.responses import Response as HTTPResponse

from llama_stack_lite import answer
from llama_stack_lite.agent.agents import Agents
from llama_stack_lite.agent.named import Named
from llama_stack_lite.answer import BodyRoute
from llama_stack_lite.api.agents import (
    PREFIX,
    Agent,
    AgentList,
    AgentRequest,
    AgentUpdate,
    DeletedAgent,
    Version,
)
from llama_stack_lite.api.conversations import Conversation, ConversationRequest
from llama_stack_lite.api.responses import Response, ResponseRequest
from llama_stack_lite.errors import InvalidRequest
from llama_stack_lite.stack import Stack
from llama_stack_lite.state import conversations

from . import responses

router = APIRouter(prefix="/v1/agents", tags=["agents"], route_class=BodyRoute)


def _named(http: Request) -> Named:
    agents: Agents = Stack.of(http).agents
    return agents.named


def _json(found: BaseModel) -> HTTPResponse:
    return HTTPResponse(found.model_dump_json(by_alias=True), media_type="application/json")


@router.post("", response_model=Agent)
async def create_agent(request: AgentRequest, http: Request) -> Any:
    """Keep an agent; from now on `model: agent:name` asks it."""
    return _json(await _named(http).create(request))


@router.get("", response_model=AgentList)
async def list_agents(
    http: Request,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    order: Literal["asc", "desc"] = "asc",
    after: str | None = None,
) -> Any:
    """Every agent in its newest version, the distribution's own first; `after` is the last one seen."""
    found = await _named(http).all()
    ordered = found if order == "asc" else found[::-1]
    data, more = answer.page(ordered, limit=limit, after=after)
    return _json(AgentList.of(data, more=more))


@router.get("/{agent_id}", response_model=Agent)
async def get_agent(agent_id: str, http: Request, version: Annotated[Version | None, Query()] = None) -> Any:
    """An agent by its id or its name: its newest version, or another."""
    return _json(await _named(http).get(agent_id, version))


@router.post("/{agent_id}", response_model=Agent)
async def update_agent(request: AgentUpdate, http: Request, agent_id: str) -> Any:
    """Keep a new version, which answers from now on; what the request does not say stays as it was."""
    return _json(await _named(http).update(agent_id, request))


@router.delete("/{agent_id}")
async def delete_agent(agent_id: str, http: Request) -> DeletedAgent:
    """Forget an agent with all its versions; what it has said stays."""
    return DeletedAgent(id=await _named(http).remove(agent_id))


@router.get("/{agent_id}/versions", response_model=AgentList)
async def list_agent_versions(agent_id: str, http: Request) -> Any:
    """Every version of an agent, the newest first."""
    data = await _named(http).versions(agent_id)
    return _json(AgentList.of(data, more=False))


@router.post("/{agent_id}/sessions")
async def create_session(request: ConversationRequest, http: Request, agent_id: str) -> Conversation:
    """Begin a conversation with an agent; its turns name it as `conversation`."""
    agent = await _named(http).get(agent_id)
    metadata = {**(request.metadata or {}), "agent": agent.name}
    items = conversations.prepared(request.items or [])
    return await conversations.create(Stack.of(http).store, items=items, metadata=metadata)


@router.post("/{agent_id}/turns", response_model=Response)
async def create_turn(request: ResponseRequest, http: Request, agent_id: str) -> Any:
    """A turn of an agent: what /v1/responses does with `model: agent:name`."""
    agent = await _named(http).get(agent_id)
    if request.model is not None:
        raise InvalidRequest("model: it is the agent's; leave it out", param="model")
    asked = request.model_copy(update={"model": f"{PREFIX}{agent.id}"})
    return await responses.create(asked, http)

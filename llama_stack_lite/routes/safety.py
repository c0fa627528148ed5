"""/v1/shields, /v1/safety/run-shield, /v1/moderations"""

from fastapi import APIRouter, Request

from llama_stack_lite import answer
from llama_stack_lite.answer import BodyRoute
from llama_stack_lite.api.moderations import (
    ModerationRequest,
    ModerationResponse,
    RunShieldRequest,
    RunShieldResponse,
    Shield,
    ShieldList,
)
from llama_stack_lite.api.safety import TOUCHPOINTS
from llama_stack_lite.errors import NotFound
from llama_stack_lite.safety import moderation
from llama_stack_lite.stack import Stack

router = APIRouter(prefix="/v1", tags=["safety"], route_class=BodyRoute)


@router.get("/shields")
async def list_shields(http: Request) -> ShieldList:
    """Every shield of the distribution: what it judges, where it is enforced, whether it is ready."""
    stack = Stack.of(http)
    await stack.judge.refresh()
    return ShieldList(data=[_shield(stack, name) for name in stack.safety])


@router.get("/shields/{identifier:path}")
async def get_shield(identifier: str, http: Request) -> Shield:
    """One shield, by its name in the distribution."""
    stack = Stack.of(http)
    if identifier not in stack.safety:
        raise NotFound("shield", identifier, stack.safety)
    await stack.judge.refresh()
    return _shield(stack, identifier)


def _shield(stack: Stack, name: str) -> Shield:
    entry = stack.config.safety[name]
    return Shield(
        identifier=name,
        provider_id=name,
        # of its settings only the model's name is shown: others may hold secrets
        provider_resource_id=str(entry.settings.get("model") or name),
        provider_type=entry.provider,
        touchpoints=[point for point in TOUCHPOINTS if name in stack.judge.enforce.shields(point)],
        categories=stack.safety[name].categories(),
        sees_images=stack.safety[name].sees_images,
        ready=name not in stack.judge.waiting,
    )


@router.post("/safety/run-shield")
async def run_shield(request: RunShieldRequest, http: Request) -> RunShieldResponse:
    """Ask one shield about the last message of a conversation, in Llama Stack's shape."""
    return await answer.whole(http, moderation.run_shield(Stack.of(http).judge, request))


@router.post("/moderations")
async def moderations(request: ModerationRequest, http: Request) -> ModerationResponse:
    """Ask a shield about texts, each by itself, or about parts that make one input, in OpenAI's shape."""
    return await answer.whole(http, moderation.moderate(Stack.of(http).judge, request))

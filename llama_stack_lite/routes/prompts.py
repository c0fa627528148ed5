"""/v1/prompts"""

from typing import Annotated

from fastapi import APIRouter, Query, Request

from llama_stack_lite.answer import BodyRoute
from llama_stack_lite.api.prompts import (
    DefaultRequest,
    DeletedPrompt,
    Prompt,
    PromptList,
    PromptRequest,
    PromptUpdate,
    Version,
)
from llama_stack_lite.stack import Stack
from llama_stack_lite.state import prompts

router = APIRouter(prefix="/v1/prompts", tags=["prompts"], route_class=BodyRoute)


@router.post("")
async def create_prompt(request: PromptRequest, http: Request) -> Prompt:
    """Keep a prompt; `{{name}}` in it stands for a variable."""
    return await prompts.create(Stack.of(http).store, request)


@router.get("")
async def list_prompts(http: Request) -> PromptList:
    """Every prompt, in its default version."""
    return PromptList(data=await prompts.defaults(Stack.of(http).store))


@router.get("/{prompt_id}")
async def get_prompt(
    prompt_id: str, http: Request, version: Annotated[Version | None, Query()] = None
) -> Prompt:
    """A version of a prompt, or the default one."""
    return await prompts.get(Stack.of(http).store, prompt_id, version)


@router.put("/{prompt_id}", include_in_schema=False)
@router.post("/{prompt_id}")
async def update_prompt(request: PromptUpdate, http: Request, prompt_id: str) -> Prompt:
    """Keep a new version, which becomes the default one unless `set_as_default` is false."""
    return await prompts.add_version(
        Stack.of(http).store, prompt_id, request, newest=request.version, as_default=request.set_as_default
    )


@router.delete("/{prompt_id}")
async def delete_prompt(prompt_id: str, http: Request) -> DeletedPrompt:
    """Forget a prompt with all its versions."""
    await prompts.remove(Stack.of(http).store, prompt_id)
    return DeletedPrompt(id=prompt_id)


@router.get("/{prompt_id}/versions")
async def list_versions(prompt_id: str, http: Request) -> PromptList:
    """Every version of a prompt."""
    return PromptList(data=await prompts.versions(Stack.of(http).store, prompt_id))


@router.put("/{prompt_id}/set-default-version", include_in_schema=False)
@router.post("/{prompt_id}/set-default-version")
async def set_default_version(request: DefaultRequest, http: Request, prompt_id: str) -> Prompt:
    """Make a version the default one."""
    return await prompts.set_default(Stack.of(http).store, prompt_id, request.version)

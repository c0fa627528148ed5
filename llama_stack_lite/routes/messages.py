"""/v1/messages and /v1/messages/count_tokens, as Anthropic's clients speak them"""

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from llama_stack_lite import answer, counting, enforcement
from llama_stack_lite.answer import BodyRoute
from llama_stack_lite.anthropic import replies
from llama_stack_lite.anthropic.errors import FRAMES, request_id
from llama_stack_lite.anthropic.requests import chat_request, prompt_request
from llama_stack_lite.api.messages import CountTokensRequest, FailureBody, MessagesRequest, Reply, TokenCount
from llama_stack_lite.stack import Stack


class NamedRoute(BodyRoute):
    """Gives each answer a `request-id`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def named(http: Request) -> Response:
            response = await handle(http)
            response.headers["request-id"] = request_id()
            return response

        return named


router = APIRouter(
    prefix="/v1/messages",
    tags=["messages"],
    route_class=NamedRoute,
    responses={
        status: {"model": FailureBody} for status in (400, 401, 404, 405, 413, 429, 500, 502, 503, 504)
    },
)


@router.post("", response_model=Reply)
async def create_message(request: MessagesRequest, http: Request) -> Any:
    """Answer a conversation: whole, or as `text/event-stream` events with `stream: true`."""
    events = replies.events(enforcement.answered(Stack.of(http), chat_request(request)), request)
    if request.stream:
        return await answer.stream(http, events, FRAMES)
    return await answer.completion(http, replies.reply(events))


@router.post("/count_tokens")
async def count_message_tokens(request: CountTokensRequest, http: Request) -> TokenCount:
    """Count the tokens of the prompt that the same message would have."""
    count = await answer.whole(http, counting.prompt_tokens(Stack.of(http), prompt_request(request)))
    return TokenCount(input_tokens=count)

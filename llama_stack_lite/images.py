"""Images that requests name by URL: fetched once, at the door, so that shields and model see the same."""

import asyncio
import base64

from .api.inference import ChatRequest, ImagePart, Message
from .errors import InvalidRequest
from .fetch import fetch
from .reach import Reach
from .stack import Stack

TYPES = ("image/png", "image/jpeg", "image/webp", "image/gif")
MOST = 32  # images that one request may have fetched: each is a request to somebody's server
TOGETHER = 4


async def fetched(stack: Stack, request: ChatRequest) -> ChatRequest:
    """The request with each image in a data URL; itself, where it names none by another.

    All of them together may have as many bytes as a request could have carried itself. Raises
    `InvalidRequest` naming the place of an image that cannot be had, and what `fetch` raises.
    """
    places: dict[str, str] = {}
    for param, part in _linked(request):
        places.setdefault(part.image_url.url, param)
    if not places:
        return request
    if len(places) > MOST:
        raise InvalidRequest(
            f"at most {MOST} images of a request are fetched; send data URLs", param="messages"
        )
    found = await _all(stack, places)
    return request.model_copy(update={"messages": [_shown(message, found) for message in request.messages]})


async def _all(stack: Stack, places: dict[str, str]) -> dict[str, str]:
    """Each URL's image as a data URL."""
    config, reach = stack.config.fetch, Reach(stack.config.fetch.allow)
    left = stack.config.server.max_body_size
    turn = asyncio.Semaphore(TOGETHER)

    async def one(url: str, param: str) -> tuple[str, str]:
        nonlocal left
        async with turn:
            file = await fetch(url.strip(), config, types=TYPES, param=param, max_bytes=left, reach=reach)
        left -= len(file.content)
        if left < 0:
            raise InvalidRequest("the images are too large together (`server.max_body_size`)", param=param)
        return url, f"data:{file.media_type};base64,{base64.b64encode(file.content).decode()}"

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(url, param)) for url, param in places.items()]
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return dict(task.result() for task in tasks)


def _linked(request: ChatRequest) -> list[tuple[str, ImagePart]]:
    """The images that are no data URLs, each with its place as errors name it."""
    return [
        (f"messages[{number}].content[{place}].image_url.url", part)
        for number, message in enumerate(request.messages)
        for place, part in enumerate(message.content if isinstance(message.content, list) else [])
        if isinstance(part, ImagePart) and not part.image_url.carries()
    ]


def _shown(message: Message, found: dict[str, str]) -> Message:
    if not isinstance(message.content, list):
        return message
    parts = [
        part.model_copy(update={"image_url": part.image_url.model_copy(update={"url": url})})
        if isinstance(part, ImagePart) and (url := found.get(part.image_url.url))
        else part
        for part in message.content
    ]
    return message.model_copy(update={"content": parts})

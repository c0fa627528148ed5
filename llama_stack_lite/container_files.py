"""Files on their way into a code interpreter's container and out of it, judged by their name and text."""

from collections.abc import Sequence

from . import enforcement
from .api.containers import Containers
from .api.safety import Touchpoint
from .errors import InvalidRequest, StackError
from .plugins import load
from .stack import Stack


async def check(stack: Stack, touchpoint: Touchpoint, name: str, data: bytes) -> None:
    """Raise `InvalidRequest` for a file that a shield flags, or that is no text and so cannot be judged."""
    try:
        text, unseen = data.decode(), None
    except UnicodeDecodeError:
        text, unseen = "", "files that are no text"
    blocked = await enforcement.judged(stack, touchpoint, f"{name}\n{text}", unseen=unseen)
    if blocked:
        raise InvalidRequest(blocked.refusal(), param="file", code="content_filter")


async def kept(stack: Stack, file_id: str) -> tuple[str, bytes]:
    """The name and the bytes of a file of /v1/files, which may be as large as a request.

    Raises `NotFound`, and `InvalidRequest` where it is larger, or this server keeps no files.
    """
    if not stack.files:
        raise InvalidRequest("this server keeps no files that could be copied: send `file`", param="file_id")
    try:
        whole = load("llama_stack_lite.uploads:whole", extra="agents")
        found: tuple[str, bytes] = await whole(stack, file_id, most=stack.config.server.max_body_size)
    except StackError as error:
        error.param = error.param or "file_id"
        raise
    return found


async def supply(
    stack: Stack, provider: Containers, session: str, file_ids: Sequence[str], *, param: str
) -> None:
    """Copy files into a session's container; those whose names are there already stay as they are.

    Raises as `kept` and `check` do, naming `param`.
    """
    there = {file.path.rpartition("/")[2] for file in await provider.files(session)}
    try:
        for file_id in file_ids:
            name, data = await kept(stack, file_id)
            if name not in there:
                await check(stack, "upload", name, data)
                await provider.write(session, name, data)
    except StackError as error:
        error.param = param
        raise

"""/v1/files"""

import sys
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Annotated, Any, Literal, cast

from fastapi import APIRouter, Query, Request
from pydantic import ValidationError
from starlette.responses import Response, StreamingResponse

from llama_stack_lite import answer, uploads
from llama_stack_lite.answer import BodyRoute
from llama_stack_lite.api.files import PURPOSES, FileDeleted, FileExpiry, FileList, FileObject, Purpose
from llama_stack_lite.errors import InvalidRequest
from llama_stack_lite.forms import Form, Upload, received
from llama_stack_lite.stack import Stack
from llama_stack_lite.state import files
from llama_stack_lite.state.paging import Paging

router = APIRouter(prefix="/v1/files", tags=["files"], route_class=BodyRoute)

UPLOAD: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "file": {"type": "string", "format": "binary"},
                        "purpose": {"type": "string", "enum": list(PURPOSES)},
                        "expires_after[anchor]": {"type": "string", "enum": ["created_at"]},
                        "expires_after[seconds]": {"type": "integer", "minimum": 3600, "maximum": 2592000},
                    },
                    "required": ["file", "purpose"],
                }
            }
        },
    }
}


# its own limit is `documents.max_file_bytes`, of a body that is never in memory
@router.post("", openapi_extra=UPLOAD, max_body_size=sys.maxsize)
async def create_file(http: Request) -> FileObject:
    """Keep a file, the part `file` of a form."""
    stack = _stack(http)
    limit = stack.config.documents.max_file_bytes
    async with received(http, limit=limit, setting="documents.max_file_bytes") as form:
        file, purpose, expiry = _read(form)
        # a client that hangs up now has sent all: the file is kept
        return await uploads.keep(stack, file, purpose=purpose, expiry=expiry)


@router.get("")
async def list_files(
    http: Request,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
    order: Literal["asc", "desc"] = "desc",
    after: str | None = None,
    purpose: Purpose | None = None,
) -> FileList:
    """Files, the newest first unless `order` is `asc`; `after` is the last one seen."""
    asked = Paging(limit, order, after)
    found, more = await files.listed(_stack(http).store, asked, purpose=purpose)
    return FileList.of(found, more=more)


@router.get("/{file_id}")
async def get_file(file_id: str, http: Request) -> FileObject:
    """What is known of a file."""
    return await files.get(_stack(http).store, file_id)


@router.get("/{file_id}/content", response_class=Response)
async def get_file_content(file_id: str, http: Request) -> Response:
    """The bytes of a file."""
    stack = _stack(http)
    row = await files.row(stack.store, file_id)
    pieces = uploads.content(stack, row)
    first = await answer.whole(http, anext(pieces))  # so that what fails at once is no broken answer
    headers = {
        "content-disposition": "attachment",  # a client wrote it: no browser may take it for a page
        "content-length": str(row.bytes),
        "x-content-type-options": "nosniff",
    }
    return StreamingResponse(_all(first, pieces), media_type="application/octet-stream", headers=headers)


@router.delete("/{file_id}")
async def delete_file(file_id: str, http: Request) -> FileDeleted:
    """Forget a file, here and in every vector store."""
    await uploads.remove(_stack(http), file_id)
    return FileDeleted(id=file_id)


def _stack(http: Request) -> Stack:
    """The stack, if it keeps files; raises `InvalidRequest`."""
    stack = Stack.of(http)
    uploads.place(stack)
    return stack


async def _all(first: bytes, rest: AsyncGenerator[bytes, None]) -> AsyncIterator[bytes]:
    async with aclosing(rest):
        yield first
        async for piece in rest:
            yield piece


def _read(form: Form) -> tuple[Upload, Purpose, FileExpiry | None]:
    """The form as its fields say; raises `InvalidRequest` naming one that is at fault."""
    if form.file is None:
        raise InvalidRequest("file: the form has no part `file` with a file name", param="file")
    if not form.file.size:
        raise InvalidRequest("file: it is empty", param="file")
    texts, known = dict(form.texts), ", ".join(f"`{each}`" for each in PURPOSES)
    purpose = texts.pop("purpose", None)
    if purpose not in PURPOSES:
        said = "it is missing" if purpose is None else f"there is no `{purpose[:64]}`"
        raise InvalidRequest(f"purpose: {said}; one of {known}", param="purpose")
    fields = {}
    for name in ("anchor", "seconds"):
        if (text := texts.pop(f"expires_after[{name}]", None)) is not None:
            fields[name] = text
    if texts:
        name = min(texts)[:64]
        raise InvalidRequest(f"{name}: an upload has no such part", param=name)
    return form.file, cast(Purpose, purpose), _expiry(fields) if fields else None


def _expiry(fields: dict[str, str]) -> FileExpiry:
    try:
        return FileExpiry.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        place = f"expires_after.{first['loc'][0]}"
        raise InvalidRequest(f"{place}: {first['msg']}", param=place) from error

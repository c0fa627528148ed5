"""/v1/containers: the folders in which a code interpreter works, and their files"""

from email.message import Message
from email.parser import HeaderParser
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request
from pydantic import ValidationError
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from llama_stack_lite import answer, container_files
from llama_stack_lite.answer import JSON_TYPE, BodyRoute
from llama_stack_lite.api.containers import (
    Container,
    ContainerDeleted,
    ContainerFile,
    ContainerFileDeleted,
    ContainerFileList,
    ContainerList,
    ContainerRequest,
    Containers,
    FileReference,
)
from llama_stack_lite.errors import ClientGone, InvalidRequest, NotFound
from llama_stack_lite.stack import Stack

router = APIRouter(prefix="/v1/containers", tags=["containers"], route_class=BodyRoute)

Limit = Annotated[int, Query(ge=1, le=100)]
Order = Literal["asc", "desc"]
FILE = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "file": {"type": "string", "format": "binary"},
                        "file_id": {"type": "string"},
                    },
                }
            },
            "application/json": {
                "schema": {
                    "type": "object",
                    "properties": {"file_id": {"type": "string"}},
                    "required": ["file_id"],
                }
            },
        },
    }
}


@router.post("")
async def create_container(request: ContainerRequest, http: Request) -> Container:
    """Make an empty container; a request names it as `{"type": "code_interpreter", "container": id}`."""
    return _providers(http)[0].create(request.name)


@router.get("")
async def list_containers(
    http: Request, limit: Limit = 20, order: Order = "desc", after: str | None = None, name: str | None = None
) -> ContainerList:
    """The containers that were made here; those that conversations have of their own are not shown."""
    found = [each for provider in _providers(http) for each in provider.containers()]
    found = sorted(found, key=lambda each: each.created_at, reverse=order == "desc")
    page, more = answer.page([each for each in found if name in (None, each.name)], limit=limit, after=after)
    return ContainerList.of(page, more=more)


@router.get("/{container_id}")
async def get_container(container_id: str, http: Request) -> Container:
    """One container."""
    return _of(http, container_id).container(container_id)


@router.delete("/{container_id}")
async def delete_container(container_id: str, http: Request) -> ContainerDeleted:
    """End a container, and all that is in it."""
    _of(http, container_id).end(container_id)
    return ContainerDeleted(id=container_id)


@router.post("/{container_id}/files", openapi_extra=FILE)
async def create_file(container_id: str, http: Request) -> ContainerFile:
    """Put a file into a container, in the place of one of the same name.

    It comes as the part `file` of a form, or is copied where the form, or JSON, has a `file_id`.
    """
    provider = _of(http, container_id)
    name, data = await _sent(http)
    await container_files.check(Stack.of(http), "upload", name, data)
    return await answer.whole(http, provider.write(container_id, name, data))


@router.get("/{container_id}/files")
async def list_files(
    container_id: str, http: Request, limit: Limit = 20, order: Order = "desc", after: str | None = None
) -> ContainerFileList:
    """The files that lie in the container's folder itself, the last written first unless `order` is `asc`."""
    found = await answer.whole(http, _of(http, container_id).files(container_id))
    found = sorted(found, key=lambda file: file.created_at, reverse=order == "desc")
    page, more = answer.page(found, limit=limit, after=after)
    return ContainerFileList.of(page, more=more)


@router.get("/{container_id}/files/{file_id}")
async def get_file(container_id: str, file_id: str, http: Request) -> ContainerFile:
    """What is known of a file."""
    return await answer.whole(http, _file(_of(http, container_id), container_id, file_id))


@router.get("/{container_id}/files/{file_id}/content", response_class=Response)
async def get_file_content(container_id: str, file_id: str, http: Request) -> Response:
    """The bytes of a file."""
    provider = _of(http, container_id)
    file = await _file(provider, container_id, file_id)
    data = await answer.whole(http, provider.read(container_id, _name(file)))
    await container_files.check(Stack.of(http), "tool_result", _name(file), data)
    # code wrote it: no browser may take it for a page
    headers = {"content-disposition": "attachment", "x-content-type-options": "nosniff"}
    return Response(data, media_type="application/octet-stream", headers=headers)


@router.delete("/{container_id}/files/{file_id}")
async def delete_file(container_id: str, file_id: str, http: Request) -> ContainerFileDeleted:
    """Remove a file from a container."""
    provider = _of(http, container_id)
    await provider.remove(container_id, _name(await _file(provider, container_id, file_id)))
    return ContainerFileDeleted(id=file_id)


async def _sent(http: Request) -> tuple[str, bytes]:
    """The name and the bytes of the file that a request carries, or names."""
    try:
        body = await http.body()
    except ClientDisconnect as error:
        raise ClientGone from error
    kind = http.headers.get("content-type", "")
    sent = _named(body) if JSON_TYPE.match(kind) else uploaded(kind, body)
    return await container_files.kept(Stack.of(http), sent) if isinstance(sent, str) else sent


def _named(body: bytes) -> str:
    try:
        return FileReference.model_validate_json(body).file_id
    except ValidationError as error:
        what = "file_id: the JSON must be an object of `file_id`, the id of a file"
        raise InvalidRequest(what, param="file_id") from error


def _providers(http: Request) -> list[Containers]:
    found: list[Containers] = [
        tools for tools in Stack.of(http).tools.values() if isinstance(tools, Containers)
    ]
    if not found:
        raise InvalidRequest(
            "nothing here runs code: the distribution's `tools` need one of `provider: code-interpreter`"
        )
    return found


def _of(http: Request, container_id: str) -> Containers:
    """The provider that has the container."""
    for provider in _providers(http):
        if provider.has(container_id):
            return provider
    raise NotFound("container", container_id)


async def _file(provider: Containers, container_id: str, file_id: str) -> ContainerFile:
    for file in await provider.files(container_id):
        if file.id == file_id:
            return file
    raise NotFound("file", file_id)


def _name(file: ContainerFile) -> str:
    return file.path.rpartition("/")[2]


def uploaded(content_type: str, body: bytes) -> tuple[str, bytes] | str:
    """The name and the content of the part `file` of a form (RFC 7578), or its `file_id`.

    Raises `InvalidRequest`.
    """
    about = Message()
    about["content-type"] = content_type
    boundary = about.get_boundary("")
    if about.get_content_type() != "multipart/form-data" or not boundary:
        raise InvalidRequest("the file must come as the part `file` of `multipart/form-data`", param="file")
    for part in (b"\r\n" + body).split(b"\r\n--" + boundary.encode())[1:-1]:
        head, separator, content = part.partition(b"\r\n\r\n")
        headers = HeaderParser().parsestr(head.decode(errors="replace").lstrip())
        name = headers.get_param("name", header="content-disposition")
        file_name = headers.get_filename()
        if separator and name == "file_id":
            return content.decode(errors="replace")
        if separator and name == "file" and file_name:
            return file_name.replace("\\", "/").rpartition("/")[2], content
    raise InvalidRequest("the form has no part `file` with a file name", param="file")

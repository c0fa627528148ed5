"""Containers: where a code interpreter keeps a session's files, and the protocol of its provider."""

from typing import Literal, Protocol, runtime_checkable

from pydantic import BaseModel, Field

from .pages import Page


class ExpiresAfter(BaseModel):
    anchor: Literal["last_active_at"] = "last_active_at"
    minutes: int


class Container(BaseModel):
    """A container as OpenAI's API shows it."""

    id: str
    object: Literal["container"] = "container"
    created_at: int
    status: Literal["running"] = "running"
    name: str
    expires_after: ExpiresAfter
    last_active_at: int


class ContainerList(Page[Container]):
    """A page of `Container`s."""


class ContainerRequest(BaseModel):
    """What a new container may be given; files are sent to it afterwards."""

    model_config = {"extra": "forbid"}
    name: str = Field(max_length=256)


class ContainerDeleted(BaseModel):
    id: str
    object: Literal["container.deleted"] = "container.deleted"
    deleted: Literal[True] = True


class FileReference(BaseModel):
    """A file of /v1/files that is to be copied into a container."""

    model_config = {"extra": "forbid"}
    file_id: str


class ContainerFile(BaseModel):
    """A file as OpenAI's API shows it; `path` is where code finds it."""

    id: str
    object: Literal["container.file"] = "container.file"
    bytes: int
    container_id: str
    created_at: int
    path: str
    source: Literal["user", "assistant"]


class ContainerFileList(Page[ContainerFile]):
    """A page of `ContainerFile`s."""


class ContainerFileDeleted(BaseModel):
    id: str
    object: Literal["container.file.deleted"] = "container.file.deleted"
    deleted: Literal[True] = True


@runtime_checkable
class Containers(Protocol):
    """What a provider of kind `code_interpreter` can do besides calls; `session` may be a container's id.

    Names are names of files in the work folder, and never paths.
    """

    def create(self, name: str) -> Container:
        """Make a container of no session; raises `Busy` where all that may be are at work."""
        ...

    def containers(self) -> list[Container]:
        """Those that `create` made."""
        ...

    def has(self, container_id: str) -> bool:
        """Whether there is such a container, a session's or another."""
        ...

    def container(self, container_id: str) -> Container:
        """Raises `NotFound`."""
        ...

    def end(self, container_id: str) -> None:
        """End a container and all that is in it; raises `NotFound`."""
        ...

    async def write(self, session: str, name: str, data: bytes) -> ContainerFile:
        """Put a file into a session's container, which is made if need be."""
        ...

    async def files(self, session: str) -> list[ContainerFile]:
        """The files of a session's work folder by name; none where it has no container."""
        ...

    async def read(self, session: str, name: str) -> bytes:
        """The content of a file; raises `NotFound`."""
        ...

    async def remove(self, session: str, name: str) -> None:
        """Remove a file; raises `NotFound`."""
        ...

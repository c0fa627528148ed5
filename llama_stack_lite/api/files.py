"""/v1/files: files as OpenAI's API shows them, and the protocol of a place that keeps their bytes."""

from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from typing import Literal, Protocol, get_args

from pydantic import BaseModel, Field

from .inference import sparse
from .pages import Page

Purpose = Literal["assistants", "batch", "fine-tune", "vision", "user_data", "evals"]  # that clients may say
PURPOSES: tuple[str, ...] = get_args(Purpose)


class FileObject(BaseModel):
    """A file; `expires_at` is left out of one that stays until it is deleted."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    expires_at: int | None = sparse()
    filename: str
    purpose: Purpose
    status: Literal["uploaded", "processed", "error"] = "processed"


class FileList(Page[FileObject]):
    """A page of `FileObject`s."""


class FileDeleted(BaseModel):
    id: str
    object: Literal["file"] = "file"
    deleted: Literal[True] = True


class FileExpiry(BaseModel):
    """`expires_after` of an upload: seconds after it was made, an hour to thirty days."""

    anchor: Literal["created_at"]
    seconds: int = Field(ge=3600, le=2_592_000)


class Files(Protocol):
    """A place for the bytes of files, under names that this server makes up and no client chooses.

    One that keeps them as files of this machine may have `path(name: str) -> Path`, which spares copies.
    """

    async def put(self, name: str, source: Path, *, digest: str) -> None:
        """Keep the bytes of a local file, whose SHA-256 is `digest`; once this returns they are durable.

        A second `put` of a name replaces the first. Raises `Unavailable` where the place is full or gone:
        then nothing of it is kept.
        """
        ...

    def read(self, name: str) -> AsyncGenerator[bytes, None]:
        """The bytes, in pieces of at most a megabyte; raises `NotFound`, `Unavailable`."""
        ...

    async def remove(self, name: str) -> None:
        """Forget the bytes; nothing happens where there are none."""
        ...

    def names(self, *, older: float) -> AsyncIterator[str]:
        """The names of what has been kept for longer than `older` seconds; raises `Unavailable`."""
        ...

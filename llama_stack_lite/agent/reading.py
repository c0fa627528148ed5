"""Items as a model reads them: summaries opened, images in place, documents as their text."""

import asyncio
import base64
import binascii
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llama_stack_lite import uploads
from llama_stack_lite.api.responses import InputFile, InputImage, InputText, Item
from llama_stack_lite.errors import InvalidRequest, StackError
from llama_stack_lite.stack import Stack
from llama_stack_lite.state import files

from .compaction import opened

INPUT = "input"  # what errors name: an item may have come with an earlier request
IMAGES = {b"\x89PNG\r\n\x1a\n": "image/png", b"\xff\xd8\xff": "image/jpeg", b"GIF8": "image/gif"}
LONGEST = 16  # bytes at the start of a file that tell its type


async def readable(stack: Stack, items: list[Item]) -> list[Item]:
    """The items with all that they name or hold in another form as texts and images.

    Documents are read where the distribution has `vector_io`, and else handed on as they are. Raises
    `NotFound`, and `InvalidRequest` for a file that cannot be read, or where all are too large together.
    """
    reader = _Reader(stack)
    try:
        return [await reader.item(item) if item.indirect() else item for item in opened(items)]
    except StackError as error:
        error.param = error.param or INPUT
        raise


class _Reader:
    """Reads files, until they are too large together; `texts` and `carried` count bytes that may yet come."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.texts = stack.config.documents.max_text_bytes
        self.carried = stack.config.server.max_body_size  # what a request could have carried itself

    async def item(self, item: Any) -> Any:
        place = "content" if hasattr(item, "content") else "output"
        parts: Sequence[Any] = getattr(item, place)
        return item.model_copy(update={place: [await self._part(part) for part in parts]})

    async def _part(self, part: Any) -> Any:
        if isinstance(part, InputImage) and part.file_id and not part.image_url:
            content = await self._content(part.file_id)
            kind = image_type(content)
            if kind is None:
                raise InvalidRequest(f"input: file `{part.file_id}` is no PNG, JPEG, GIF or WebP image")
            return part.model_copy(update={"image_url": _data_url(kind, content)})
        if isinstance(part, InputFile):
            return await self._document(part)
        return part

    async def _document(self, part: InputFile) -> InputText | InputFile:
        filename = part.filename
        if part.file_id and not part.file_data:
            uploads.place(self.stack)
            filename = filename or (await files.get(self.stack.store, part.file_id)).filename
        if self.stack.ingestion:
            return InputText(type="input_text", text=await self._text(part, filename or "file"))
        if part.file_id and not part.file_data:
            data = _data_url("application/octet-stream", await self._content(part.file_id))
            return part.model_copy(update={"file_data": data, "filename": filename})
        return part

    async def _text(self, part: InputFile, filename: str) -> str:
        if part.file_data:
            with tempfile.TemporaryDirectory(prefix="llama-lite-") as folder:
                path = Path(folder) / "file"
                await asyncio.to_thread(path.write_bytes, _decoded(part.file_data))
                return await self._parsed(path, filename)
        async with uploads.local_copy(self.stack, part.file_id or "") as path:
            return await self._parsed(path, filename)

    async def _parsed(self, path: Path, filename: str) -> str:
        try:
            parsed = await self.stack.ingestion.parsers.parsed(path, filename)
        except InvalidRequest as error:
            raise InvalidRequest(f"input: `{filename}`: {error}", code=error.code) from error
        blocks = [
            f"{'#' * block.level} {block.text}" if block.kind == "heading" else block.text
            for block in parsed.blocks
        ]
        text = "\n\n".join(blocks)
        self.texts -= len(text.encode())
        if self.texts < 0:
            raise InvalidRequest("input: its files have too much text together (`documents.max_text_bytes`)")
        return f"The file `{filename}`:\n\n{text}"

    async def _content(self, file_id: str) -> bytes:
        """The bytes of a file that goes with the request."""
        _, content = await uploads.whole(self.stack, file_id, most=self.carried)
        self.carried -= len(content)
        return content


def image_type(content: bytes) -> str | None:
    """The media type of an image, by how it begins."""
    start = content[:LONGEST]
    if start.startswith(b"RIFF") and start[8:12] == b"WEBP":
        return "image/webp"
    return next((kind for mark, kind in IMAGES.items() if start.startswith(mark)), None)


def _data_url(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _decoded(data: str) -> bytes:
    """The bytes of a `data:` URL, or of base64 alone."""
    head, comma, rest = data.partition(",")
    if comma and not head.endswith(";base64"):
        raise InvalidRequest("input: `file_data` is no `data:` URL of base64")
    try:
        return base64.b64decode(rest if comma else data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidRequest("input: `file_data` is no base64") from error

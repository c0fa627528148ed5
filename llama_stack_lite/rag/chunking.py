"""A parsed document as chunks that fit the model which embeds them."""

from dataclasses import dataclass

from llama_stack_lite.api.vector_stores import Chunking
from llama_stack_lite.stack import Model, Stack

from .parsing import Parsed


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a document, in its words; `tokens` is what the embedding model reads of it.

    `headings` are those that it stands under, the outermost first; `context` is said before the text where
    the chunk is embedded and searched, and never shown as text.
    """

    text: str
    headings: list[str]
    page: int | None
    tokens: int
    context: str | None

    def embedded(self) -> str:
        """What is embedded and searched by keyword."""
        return f"{self.context}\n\n{self.text}" if self.context else self.text


async def check(stack: Stack, model: Model, chunking: Chunking) -> None:
    """Raise `InvalidRequest`, naming the field, where chunks would be longer than the model reads."""
    raise NotImplementedError


async def chunked(stack: Stack, model: Model, parsed: Parsed, chunking: Chunking) -> list[Chunk]:
    """The chunks of a document, in its order; none where it has no text. Raises `StackError`."""
    raise NotImplementedError

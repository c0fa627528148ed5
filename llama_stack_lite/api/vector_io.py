"""/v1/vector-io: chunks without files, and the protocol of an index of vectors."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Protocol

from pydantic import BaseModel, Field

from .inference import Nullable
from .vector_stores import Attributes, Search, SearchHit


class RawChunk(Nullable):
    """A chunk as a client made it; one with the `chunk_id` of another in the store takes its place."""

    content: str = Field(min_length=1)
    chunk_id: str | None = Field(
        None, pattern=r"^[A-Za-z0-9_.:-]{1,64}$", description="made up where it is missing"
    )
    metadata: Attributes = Field({}, description="what filters can ask for")
    embedding: list[float] | None = Field(None, description="made by the store's model where it is missing")


class InsertRequest(Nullable):
    vector_store_id: str
    chunks: list[RawChunk] = Field(min_length=1, max_length=2048)


class Inserted(BaseModel):
    vector_store_id: str
    chunk_ids: list[str]


class DeleteRequest(Nullable):
    vector_store_id: str
    chunk_ids: list[Annotated[str, Field(max_length=64)]] = Field(min_length=1, max_length=2048)


class Deleted(BaseModel):
    vector_store_id: str
    chunk_ids: list[str] = Field(description="those that there were")


class QueryRequest(Search):
    """A search of one store; without `query` and `embedding` the chunks that `filters` finds, in order."""

    vector_store_id: str
    query: str | None = Field(None, min_length=1)
    embedding: list[float] | None = None


class QueryResult(BaseModel):
    chunks: list[SearchHit]
    scores: list[float]


@dataclass(frozen=True, slots=True)
class Index:
    """An index: the vector store that it is of, and the version of that store that it is to know."""

    store: str
    dimension: int
    version: int


class VectorIO(Protocol):
    """Finds the vectors nearest to another, by the cosine of their angle; of chunks it knows only keys.

    Texts, attributes and the vectors themselves are in the database. An index may hold keys that the
    database knows no more, and is never asked whether a key may be shown. What it has lost, it gets back from
    there (`state.vectors`).
    """

    async def add(self, index: Index, keys: Sequence[int], vectors: bytes) -> None:
        """Take vectors in; a key that is there already is replaced. Durable once this returns.

        `vectors` are little-endian float32, a row of `index.dimension` for each key, each row of length 1.
        """
        ...

    async def remove(self, index: Index, keys: Sequence[int]) -> None:
        """Forget keys; those that are not there too."""
        ...

    async def nearest(
        self, index: Index, vector: Sequence[float], *, limit: int, among: Sequence[int] | None = None
    ) -> list[tuple[int, float]]:
        """The keys nearest to a vector of length 1, best first, each with its cosine from -1 to 1.

        At most `limit`, and only such as are `among` those given: then none that is nearer is left out.
        """
        ...

    async def drop(self, index: Index) -> None:
        """Forget the whole index."""
        ...

"""/v1/vector_stores: stores, their files, batches and searches, as OpenAI's API has them."""

import json
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, Field, FiniteFloat, StringConstraints, model_validator

from .inference import Nullable, Wire, sparse
from .pages import Page

Status = Literal["in_progress", "completed", "cancelled", "failed"]
ErrorCode = Literal["server_error", "unsupported_file", "invalid_file"]
Plain = Annotated[str, StringConstraints(pattern=r"^[^\x00]*$")]  # no database takes a NUL
Key = Annotated[Plain, StringConstraints(min_length=1, max_length=64)]
# a whole number that a float cannot tell from its neighbours becomes a float
Whole = Annotated[int, Field(ge=-(2**53), le=2**53)]
Attribute = Annotated[str, StringConstraints(max_length=512)] | bool | Whole | FiniteFloat
Attributes = Annotated[dict[Key, Attribute], Field(max_length=16)]
Metadata = Annotated[dict[Key, Annotated[str, StringConstraints(max_length=512)]], Field(max_length=16)]
SearchMode = Literal["vector", "keyword", "hybrid"]


class StoreExpiry(Nullable):
    anchor: Literal["last_active_at"]
    days: int = Field(ge=1, le=365)


# ------------------------------------------------------------ chunking


class AutoChunking(Nullable):
    """By the document's structure: headings, paragraphs, tables and code are kept whole where they fit."""

    type: Literal["auto"] = "auto"


class StaticSizes(Nullable):
    """Tokens of the store's embedding model."""

    max_chunk_size_tokens: int = Field(ge=1, le=4096)
    chunk_overlap_tokens: int = Field(ge=0)

    @model_validator(mode="after")
    def _overlap(self) -> "StaticSizes":
        if self.chunk_overlap_tokens * 2 > self.max_chunk_size_tokens:
            raise ValueError("`chunk_overlap_tokens` is more than half of `max_chunk_size_tokens`")
        return self


class StaticChunking(Nullable):
    type: Literal["static"]
    static: StaticSizes


class ContextualOptions(Nullable):
    model: str | None = None  # the distribution's default where it is not said
    max_chunk_size_tokens: int | None = Field(None, ge=1, le=4096)
    prompt: str | None = Field(None, description="with `{document}` and `{chunk}` in it")


class ContextualChunking(Nullable):
    """As `auto`, and a model writes one line for each chunk that says where in the document it stands."""

    type: Literal["contextual"]
    contextual: ContextualOptions = ContextualOptions()


Chunking = Annotated[AutoChunking | StaticChunking | ContextualChunking, Field(discriminator="type")]


# ------------------------------------------------------------ stores


class FileCounts(BaseModel):
    in_progress: int = 0
    completed: int = 0
    failed: int = 0
    cancelled: int = 0
    total: int = 0


class VectorStore(BaseModel):
    id: str
    object: Literal["vector_store"] = "vector_store"
    created_at: int
    name: str
    description: str | None = sparse()
    usage_bytes: int
    file_counts: FileCounts
    status: Literal["expired", "in_progress", "completed"]
    expires_after: StoreExpiry | None = None
    expires_at: int | None = None
    last_active_at: int
    metadata: Metadata
    embedding_model: str
    embedding_dimension: int
    provider: str


class VectorStoreRequest(Nullable):
    """A new store; the last three fields are this server's own, by default as the distribution says."""

    name: str = Field("", max_length=256)
    description: str | None = Field(None, max_length=1024)
    file_ids: list[str] = Field([], max_length=2000)
    chunking_strategy: Chunking = Field(default_factory=AutoChunking)
    expires_after: StoreExpiry | None = None
    metadata: Metadata = Field(default_factory=dict)
    embedding_model: str | None = None
    embedding_dimension: int | None = Field(None, ge=1, le=16_384)
    provider: str | None = None


class VectorStoreUpdate(Wire):
    """What is `null` is cleared; what is left out stays."""

    name: str | None = Field(None, max_length=256)
    expires_after: StoreExpiry | None = None
    metadata: Metadata | None = None


class VectorStoreList(Page[VectorStore]):
    """A page of `VectorStore`s."""


class VectorStoreDeleted(BaseModel):
    id: str
    object: Literal["vector_store.deleted"] = "vector_store.deleted"
    deleted: Literal[True] = True


# ------------------------------------------------------------ files of a store


class LastError(BaseModel):
    code: ErrorCode
    message: str


class VectorStoreFile(BaseModel):
    """A file in a store; `chunks` counts those that can be found, `progress` says how far one has come."""

    id: str
    object: Literal["vector_store.file"] = "vector_store.file"
    created_at: int
    vector_store_id: str
    status: Status
    last_error: LastError | None = None
    usage_bytes: int
    attributes: Attributes = Field(default_factory=dict)
    chunking_strategy: dict[str, Any]
    chunks: int = 0
    progress: float = Field(0, ge=0, le=1, description="the part of its chunks that is embedded")


class StoreFileRequest(Nullable):
    file_id: str
    attributes: Attributes = Field(default_factory=dict)
    chunking_strategy: Chunking | None = None  # the store's where it is not said


class StoreFileUpdate(Wire):
    attributes: Attributes | None


class StoreFileList(Page[VectorStoreFile]):
    """A page of `VectorStoreFile`s."""


class StoreFileDeleted(BaseModel):
    id: str
    object: Literal["vector_store.file.deleted"] = "vector_store.file.deleted"
    deleted: Literal[True] = True


class FileContent(BaseModel):
    type: Literal["text"] = "text"
    text: str


class FileContentPage(BaseModel):
    object: Literal["vector_store.file_content.page"] = "vector_store.file_content.page"
    data: list[FileContent]
    has_more: bool = False
    next_page: str | None = None


class FileBatchRequest(Nullable):
    """Either `file_ids`, with what holds for all of them, or `files`, each with its own."""

    file_ids: list[str] = Field([], max_length=2000)
    files: list[StoreFileRequest] = Field([], max_length=2000)
    attributes: Attributes = Field(default_factory=dict)
    chunking_strategy: Chunking | None = None

    @model_validator(mode="after")
    def _either(self) -> "FileBatchRequest":
        if bool(self.file_ids) == bool(self.files):
            raise ValueError("`file_ids` or `files` must name at least one file, and not both")
        return self

    def each(self) -> list[StoreFileRequest]:
        """The files, each with what holds for it."""
        return self.files or [
            StoreFileRequest(
                file_id=file_id, attributes=self.attributes, chunking_strategy=self.chunking_strategy
            )
            for file_id in self.file_ids
        ]


class FileBatch(BaseModel):
    id: str
    object: Literal["vector_store.files_batch"] = "vector_store.files_batch"
    created_at: int
    vector_store_id: str
    status: Status
    file_counts: FileCounts


# ------------------------------------------------------------ search


MOST_COMPARISONS, DEEPEST = 128, 8  # of one search's filters


class Comparison(Nullable):
    """`ne` and `nin` are what `eq` and `in` are not: they hold where there is no such attribute too."""

    type: Literal["eq", "ne", "gt", "gte", "lt", "lte", "in", "nin"]
    key: Key
    value: Plain | bool | FiniteFloat | Annotated[list[Plain | bool | FiniteFloat], Field(max_length=1000)]

    @model_validator(mode="after")
    def _fits(self) -> "Comparison":
        if isinstance(self.value, list) != (self.type in ("in", "nin")):
            raise ValueError(
                f"`value` of `{self.type}` is {'a list' if self.type in ('in', 'nin') else 'none'}"
            )
        if isinstance(self.value, bool) and self.type not in ("eq", "ne"):
            raise ValueError(f"`value` is true or false, which `{self.type}` cannot compare")
        return self


class Compound(Nullable):
    type: Literal["and", "or"]
    filters: list["Filter"] = Field(min_length=1, max_length=64)


Filter = Annotated[Comparison | Compound, Field(discriminator="type")]


def _bounded(filter: Comparison | Compound) -> Comparison | Compound:
    layer, comparisons = [filter], 0
    for _ in range(DEEPEST):
        comparisons += sum(isinstance(each, Comparison) for each in layer)
        layer = [inner for each in layer if isinstance(each, Compound) for inner in each.filters]
    if layer or comparisons > MOST_COMPARISONS:
        raise ValueError(f"filters have at most {MOST_COMPARISONS} comparisons, {DEEPEST} levels deep")
    return filter


class HybridWeights(Nullable):
    embedding_weight: float = Field(ge=0)
    text_weight: float = Field(ge=0)

    @model_validator(mode="after")
    def _some(self) -> "HybridWeights":
        if not self.embedding_weight + self.text_weight:
            raise ValueError("`embedding_weight` and `text_weight` are both 0")
        return self


class RankingOptions(Nullable):
    """`ranker` is `none`, a model to rank with, or `auto`: `defaults.rerank_model`, where there is one."""

    ranker: str = "auto"
    score_threshold: float = Field(0, ge=0, le=1)
    hybrid_search: HybridWeights | None = Field(None, description="weights of rank fusion; by default equal")
    fusion: Literal["rrf", "weighted"] = "rrf"
    candidates: int | None = Field(None, ge=1, le=200, description="how many hits are ranked again")


class Search(Nullable):
    """What searches have in common; the first four fields are OpenAI's."""

    max_num_results: int = Field(10, ge=1, le=50)
    filters: Annotated[Filter, AfterValidator(_bounded)] | None = None
    ranking_options: RankingOptions = RankingOptions()
    rewrite_query: bool = False
    search_mode: SearchMode = "hybrid"
    window: int = Field(0, ge=0, le=10, description="neighbours of a hit that are told with it, on each side")
    guardrails: list[str] = Field(
        [], description="shields that judge what is found, besides the enforced ones"
    )


class SearchRequest(Search):
    query: (
        Annotated[str, Field(min_length=1)]
        | Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1, max_length=16)]
    )

    def queries(self) -> list[str]:
        return [self.query] if isinstance(self.query, str) else self.query


class SearchHit(BaseModel):
    """A chunk that was found; `score` is from 0 to 1, and the higher the better.

    `content` is the chunk's text, between those of its neighbours where the search asked for them.
    """

    file_id: str
    filename: str
    score: float
    attributes: Attributes
    content: list[FileContent]
    chunk_id: str
    position: int = Field(description="of the chunk in its file, from 0")
    headings: list[str] = Field([], description="those that it stands under, the outermost first")
    page: int | None = sparse()

    @classmethod
    def of(cls, row: Any, score: float, texts: list[str] | None = None) -> "SearchHit":
        """A chunk as the database has it, with its own text or those around it."""
        return cls(
            file_id=row.id,
            filename=row.filename,
            score=score,
            attributes=json.loads(row.attributes),
            content=[FileContent(text=text) for text in texts or [row.text]],
            chunk_id=row.id if row.raw else f"{row.id}:{row.position}",
            position=row.position,
            headings=json.loads(row.headings),
            page=row.page,
        )

    def text(self) -> str:
        return "\n".join(part.text for part in self.content)


class SearchPage(BaseModel):
    object: Literal["vector_store.search_results.page"] = "vector_store.search_results.page"
    search_query: list[str]
    data: list[SearchHit]
    has_more: bool = False
    next_page: str | None = None

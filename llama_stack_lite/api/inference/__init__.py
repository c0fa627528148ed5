"""Inference: the types on the wire, which are OpenAI's, and the protocol that a provider implements."""

from collections.abc import AsyncGenerator
from typing import Protocol

from llama_stack_lite.api.models import ModelCard

from .chat import (
    Answer,
    ChatChoice,
    ChatChunk,
    ChatCompletion,
    ChatRequest,
    ChunkChoice,
    Delta,
    FinishReason,
    FunctionDelta,
    JsonSchema,
    Logprobs,
    ResponseFormat,
    Sampling,
    Stop,
    StreamOptions,
    TokenDetails,
    TokenLogprob,
    ToolCallDelta,
    TopLogprob,
    Usage,
)
from .completions import (
    Completion,
    CompletionChoice,
    CompletionLogprobs,
    CompletionRequest,
    Texts,
    TokenIds,
    Tokens,
)
from .embeddings import Embedding, EmbeddingRequest, EmbeddingResponse, Embeddings, EmbeddingUsage
from .messages import (
    AllowedToolChoice,
    AllowedTools,
    FunctionCall,
    FunctionDefinition,
    ImagePart,
    ImageURL,
    Message,
    NamedFunction,
    NamedTool,
    Nullable,
    OtherPart,
    Part,
    RefusalPart,
    TextPart,
    Tool,
    ToolCall,
    Wire,
    arguments_of,
    sparse,
)
from .rerank import (
    Ranking,
    RerankDocument,
    RerankRequest,
    RerankResponse,
    RerankResult,
    RerankUsage,
    TextDocument,
)

__all__ = [
    "AllowedToolChoice",
    "AllowedTools",
    "Answer",
    "ChatChoice",
    "ChatChunk",
    "ChatCompletion",
    "ChatRequest",
    "ChunkChoice",
    "Completion",
    "CompletionChoice",
    "CompletionLogprobs",
    "CompletionRequest",
    "Delta",
    "Embedding",
    "EmbeddingRequest",
    "EmbeddingResponse",
    "EmbeddingUsage",
    "Embeddings",
    "FinishReason",
    "FunctionCall",
    "FunctionDefinition",
    "FunctionDelta",
    "ImagePart",
    "ImageURL",
    "Inference",
    "JsonSchema",
    "Logprobs",
    "Message",
    "NamedFunction",
    "NamedTool",
    "Nullable",
    "OtherPart",
    "Part",
    "Ranking",
    "RefusalPart",
    "RerankDocument",
    "RerankRequest",
    "RerankResponse",
    "RerankResult",
    "RerankUsage",
    "ResponseFormat",
    "Sampling",
    "Stop",
    "StreamOptions",
    "TextDocument",
    "TextPart",
    "Texts",
    "TokenDetails",
    "TokenIds",
    "TokenLogprob",
    "Tokens",
    "Tool",
    "ToolCall",
    "ToolCallDelta",
    "TopLogprob",
    "Usage",
    "Wire",
    "arguments_of",
    "sparse",
]


class Inference(Protocol):
    """A provider of models. It leaves out the calls that none of its models' kinds can answer.

    `model` is the provider's own name for the model, without the provider's name before it.
    Raises `StackError`s only: an SDK's errors are mapped where the SDK is called.
    """

    async def models(self) -> list[ModelCard]:
        """The models served, asked once at start."""
        ...

    def chat(self, model: str, request: ChatRequest) -> AsyncGenerator[ChatChunk, None]:
        """Yield chunks as they come; the last has `usage` and no choices. Closing it stops the model."""
        ...

    async def count(self, model: str, request: ChatRequest) -> int:
        """How many tokens the prompt has that `chat` would make of the request."""
        ...

    def complete(self, model: str, request: CompletionRequest) -> AsyncGenerator[Completion, None]:
        """Like `chat`, for plain prompts. Choices are numbered prompt by prompt: `n` for each."""
        ...

    async def embed(
        self, model: str, inputs: list[str] | list[list[int]], *, dimensions: int | None = None
    ) -> Embeddings: ...

    async def token_starts(self, model: str, texts: list[str]) -> list[list[int]]:
        """Where in each text its tokens begin, in characters and ascending: as many as `embed` counts.

        Special tokens are among them, and no text is too long. A provider that cannot say it exactly leaves
        this out, even if it embeds: then texts are cut by a careful estimate.
        """
        ...

    async def rerank(self, model: str, query: str, documents: list[str]) -> Ranking:
        """Say how well each document answers the query; raises `ContextOverflow` for one that is too long."""
        ...

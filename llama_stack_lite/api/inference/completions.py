"""/v1/completions: plain prompts, and what continues them."""

from typing import Annotated, Literal, Self

from pydantic import Field

from llama_stack_lite.api.safety import Blocked

from .chat import ResponseFormat, Sampling, Usage
from .messages import Wire, sparse

TokenIds = list[Annotated[int, Field(ge=0)]]
Texts = str | Annotated[list[str], Field(min_length=1, max_length=2048)]
Tokens = (
    Annotated[TokenIds, Field(min_length=1)]
    | Annotated[list[Annotated[TokenIds, Field(min_length=1)]], Field(min_length=1, max_length=2048)]
)


class CompletionRequest(Sampling):
    prompt: Texts | Tokens
    max_tokens: int | None = Field(16, ge=0)
    logprobs: int | None = Field(None, ge=0, le=5)
    echo: bool = False
    suffix: str | None = None
    best_of: int | None = Field(None, ge=1, le=20)
    # as vLLM and Ollama extend the API: JSON answers from a plain completion
    response_format: ResponseFormat | None = None

    def prompts(self) -> list[str] | list[list[int]]:
        """The prompts as a list, in the shape they came in: all texts, or all token ids."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [self.prompt]
        return self.prompt


class CompletionLogprobs(Wire):
    tokens: list[str] = Field(default_factory=list)
    token_logprobs: list[float | None] = Field(default_factory=list)
    top_logprobs: list[dict[str, float] | None] | None = None
    text_offset: list[int] = Field(default_factory=list)

    @classmethod
    def joined(cls, said: Self | None, more: Self | None) -> Self | None:
        """Those of two pieces of text that follow each other."""
        if said is None or more is None:
            return said or more
        top = None
        if said.top_logprobs is not None or more.top_logprobs is not None:
            top = [*(said.top_logprobs or []), *(more.top_logprobs or [])]
        return cls(
            tokens=said.tokens + more.tokens,
            token_logprobs=said.token_logprobs + more.token_logprobs,
            top_logprobs=top,
            text_offset=said.text_offset + more.text_offset,
        )


class CompletionChoice(Wire):
    index: int = 0
    text: str = ""
    logprobs: CompletionLogprobs | None = None
    finish_reason: Literal["stop", "length", "content_filter"] | None = None
    refusal: str | None = sparse()
    safety: Blocked | None = sparse()


class Completion(Wire):
    """A whole completion, and also a chunk of a streamed one: OpenAI gives both one shape."""

    id: str = ""
    object: Literal["text_completion"] = "text_completion"
    created: int = 0
    model: str = ""
    choices: list[CompletionChoice]
    usage: Usage | None = sparse()
    system_fingerprint: str | None = sparse()

"""Whole answers of an upstream: embeddings, and documents scored by relevance."""

import base64
import math
from array import array
from typing import Any

from pydantic import BaseModel, Field, FiniteFloat, field_validator


class Usage(BaseModel):
    prompt_tokens: int = 0
    total_tokens: int = 0

    @property
    def tokens(self) -> int:
        """What was read; of a ranking vLLM says the total only."""
        return self.prompt_tokens or self.total_tokens


class Item(BaseModel):
    index: int
    embedding: list[FiniteFloat] = Field(min_length=1)

    @field_validator("embedding", mode="before")
    @classmethod
    def _plain(cls, value: Any) -> Any:
        """Some servers send base64 unasked."""
        return array("f", base64.b64decode(value, validate=True)) if isinstance(value, str) else value


class EmbeddingBody(BaseModel):
    data: list[Item]
    usage: Usage = Usage()

    def vectors(self) -> list[list[float]]:
        """In the order of the texts."""
        return [item.embedding for item in sorted(self.data, key=lambda item: item.index)]


class Scored(BaseModel):
    index: int
    relevance_score: FiniteFloat


class RankingBody(BaseModel):
    results: list[Scored]
    usage: Usage = Usage()

    def scores(self) -> list[float]:
        """In the order of the documents; logits, which llama.cpp's server sends, become their sigmoid."""
        found = [item.relevance_score for item in sorted(self.results, key=lambda item: item.index)]
        if all(0 <= score <= 1 for score in found):
            return found
        return [(1 + math.tanh(score / 2)) / 2 for score in found]

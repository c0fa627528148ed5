"""The sections of a distribution, and where its files live."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, SecretStr

from llama_stack_lite.plugins import config_class

Name = Annotated[
    str, Field(pattern=r"^[A-Za-z0-9_-]+$")
]  # models are `name/model`, overrides `section.name.key`


class ProviderEntry(BaseModel):
    """`provider:` names the plug-in; every other key is that plug-in's own configuration."""

    model_config = ConfigDict(extra="allow")
    provider: str = Field(description="the plug-in: an installed one's name, or `module:Class`")

    @property
    def settings(self) -> dict[str, Any]:
        return self.model_extra or {}

    def __repr_args__(self) -> Iterator[tuple[str, Any]]:
        """Settings may hold secrets, so that logs show none of them."""
        yield "provider", self.provider


class Defaults(BaseModel):
    """Names used where a request or a command gives none."""

    model_config = ConfigDict(extra="forbid")
    model: str | None = Field(None, description="a chat model, as `provider/model`")
    embedding_model: str | None = Field(None, description="an embedding model, as `provider/model`")


class Server(BaseModel):
    """Where the server listens, and whom it lets in."""

    model_config = ConfigDict(extra="forbid")
    host: str = "127.0.0.1"
    port: int = Field(8321, ge=0, le=65535)
    api_keys: list[SecretStr] = Field([], description="every request must carry one of them")
    cors_origins: list[str] = Field([], description="web pages that may call the server")
    max_body_size: int = Field(32 * 1024 * 1024, ge=1024, description="bytes")


class StackConfig(BaseModel):
    """The whole configuration; what is not in here does not run."""

    model_config = ConfigDict(extra="forbid")
    description: str | None = None
    inference: dict[Name, ProviderEntry] = Field({}, description="providers of chat and embedding models")
    defaults: Defaults = Defaults()
    server: Server = Server()

    def providers(self) -> dict[str, dict[str, ProviderEntry]]:
        """The provider sections, in the order they are built."""
        return {"inference": self.inference}


def config_of(api: str, entry: ProviderEntry) -> BaseModel:
    """An entry's settings as its plug-in's own `Config`; raises pydantic's `ValidationError`."""
    return config_class(api, entry.provider)(**entry.settings)


def home() -> Path:
    """Where models and state live: `$LLAMA_LITE_HOME`, or `~/.llama-lite`."""
    return Path(os.environ.get("LLAMA_LITE_HOME") or Path.home() / ".llama-lite")

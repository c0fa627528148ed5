"""/v1/prompts: texts with `{{variables}}`, in versions, in Llama Stack's shape."""

import re
from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

PLACE = re.compile(r"\{\{\s*(\w+)\s*\}\}")  # anything else between braces is text
Version = Annotated[int, Field(ge=1, le=2**31 - 1)]
Variable = Annotated[str, StringConstraints(pattern=r"^\w{1,64}$")]


class PromptText(BaseModel):
    """A text, and the names that may stand in it; every one that does must be declared."""

    prompt: str
    variables: list[Variable] = Field([], max_length=100)

    @model_validator(mode="after")
    def _declared(self) -> Self:
        if missing := sorted(self.used() - {*self.variables}):
            raise ValueError(f"the prompt uses {_listed(missing)}, which `variables` does not declare")
        return self

    def used(self) -> set[str]:
        """The variables that the text cannot do without."""
        return set(PLACE.findall(self.prompt))

    def fill(self, values: Mapping[str, str]) -> str:
        """Put values in their places; what stands in a value is never taken for a place."""
        return PLACE.sub(lambda found: values[found[1]], self.prompt)


class Prompt(PromptText):
    """One version of a prompt; the default one is what a reference without a version means."""

    prompt_id: str
    version: Version
    is_default: bool


class PromptRequest(PromptText):
    """A new prompt, which is its version 1."""

    model_config = ConfigDict(extra="forbid")


class PromptUpdate(PromptText):
    """A new version. `version`, if given, is the newest one that the client knows of."""

    model_config = ConfigDict(extra="forbid")
    version: Version | None = None
    set_as_default: bool = True


class DefaultRequest(BaseModel):
    """Which version is to be the default."""

    model_config = ConfigDict(extra="forbid")
    version: Version


class PromptList(BaseModel):
    data: list[Prompt]


class DeletedPrompt(BaseModel):
    id: str
    object: Literal["prompt.deleted"] = "prompt.deleted"
    deleted: bool = True


def _listed(names: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)

"""Lists that come in pages, as OpenAI's API shows them."""

from collections.abc import Sequence
from typing import Generic, Literal, Protocol, Self, TypeVar, runtime_checkable

from pydantic import BaseModel, ConfigDict


@runtime_checkable
class Named(Protocol):
    """What has an id."""

    id: str


T = TypeVar("T", bound=Named)


class Page(BaseModel, Generic[T]):
    """A part of a list: who wants what follows asks for it `after` the `last_id`."""

    model_config = ConfigDict(arbitrary_types_allowed=True)  # Named, until a subclass says which

    object: Literal["list"] = "list"
    data: list[T]
    first_id: str | None
    last_id: str | None
    has_more: bool

    @classmethod
    def of(cls, data: Sequence[T], *, more: bool) -> Self:
        """These, and whether there are more behind them."""
        first, last = (data[0].id, data[-1].id) if data else (None, None)
        return cls(data=[*data], first_id=first, last_id=last, has_more=more)

"""Models in memory: loaded on first use, kept while used, let go when idle or when room is needed."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Generic, Protocol, Self, TypeVar

from pydantic import Field, model_validator

from llama_stack_lite.api.models import ModelCard, ModelState
from llama_stack_lite.errors import NotFound, StackError, Unavailable
from llama_stack_lite.models import LocalModels, format_size, why_missing

log = logging.getLogger(__name__)


class ResidentModels(LocalModels):
    """The `Config` base of providers that hold whole models in memory."""

    models: list[str | ModelCard] = Field([], description="as every provider of model files names them")
    optional: list[str | ModelCard] = Field(
        [], description="models served from the moment their files are here; `run` pulls none of them"
    )
    preload: bool = Field(True, description="load at start; else on first use")
    keep_alive: float | None = Field(
        None, ge=0, description="seconds that an idle model stays loaded; by default for ever"
    )
    memory: int | None = Field(
        None, ge=1, description="bytes for all models together; over it, idle ones are let go"
    )
    stream_interval: float = Field(
        0.03, ge=0, description="seconds: tokens of an answer that are made within them leave together"
    )

    @model_validator(mode="after")
    def _serves_any(self) -> Self:
        if not (self.models or self.optional):
            raise ValueError("`models` or `optional` has to name a model")
        return self

    def optional_cards(self) -> list[ModelCard]:
        return self.model_copy(update={"models": self.optional}).cards()


class Resident(Protocol):
    """A loaded model: the bytes it takes, how it is held in words, and why it stopped working if it did."""

    @property
    def memory(self) -> int: ...
    @property
    def detail(self) -> str: ...
    @property
    def broken(self) -> str | None: ...
    def close(self) -> None: ...


R = TypeVar("R", bound=Resident)


@dataclass(eq=False)
class Place(Generic[R]):
    """One model's place in memory. `size` in bytes is a guess until the model has been loaded once."""

    name: str
    load: Callable[[], R]
    size: int
    missing: Callable[[], str | None] = lambda: None
    model: R | None = None
    users: int = 0
    used: int = 0
    leaving: bool = False
    loading: bool = False
    error: str | None = None
    timer: asyncio.TimerHandle | None = None

    def __post_init__(self) -> None:
        self.left = asyncio.Event()

    def usable(self) -> R | None:
        return None if self.model is None or self.model.broken or self.leaving else self.model

    def open(self) -> None:
        """Load, blocking; a failure is remembered, and raised as `Unavailable`."""
        try:
            self.model = self.load()
        except StackError as error:
            self.error = str(error)
            raise Unavailable(f"`{self.name}` cannot be loaded: {error}") from error
        self.size, self.error = self.model.memory, None
        log.info("%s is loaded, in %s: %s", self.name, format_size(self.size), self.model.detail)

    def close(self) -> None:
        """Let the model go, blocking."""
        model, self.model = self.model, None
        if model is not None:
            model.close()
            log.info("%s is unloaded", self.name)

    def state(self) -> ModelState:
        if self.loading:
            return ModelState(state="loading")
        if self.model is not None:
            failed, detail = self.model.broken, self.model.detail
            return ModelState(
                state="failed" if failed else "loaded", detail=detail, memory=self.size, error=failed
            )
        if why := self.missing():
            return ModelState(state="missing", detail=why)
        return ModelState(state="failed" if self.error else "unloaded", error=self.error)


class Residents(Generic[R]):
    """The models of one provider. One is loaded at a time; who uses a loaded one waits for nothing."""

    def __init__(self, config: ResidentModels) -> None:
        self.keep_alive = config.keep_alive
        self.budget = config.memory
        self.places: dict[str, Place[R]] = {}
        self._clock = 0
        self._turn = asyncio.Lock()
        self._closing: set[asyncio.Task[None]] = set()

    def add(
        self, card: ModelCard, load: Callable[[], R], *, size: int, now: bool, optional: bool = False
    ) -> None:
        """Make a place for a model. Loaded `now`, it may fail: it is logged, and others go on serving.

        The files of an `optional` one may come later.
        """
        place = self.places[card.id] = Place(card.id, load, size)
        if optional:
            place.missing = lambda: why_missing(card)
            now = now and place.missing() is None
        if now and (self.budget is None or self._taken() + size <= self.budget):
            try:
                place.open()
            except Unavailable as error:
                log.error("%s", error)

    @asynccontextmanager
    async def use(self, name: str) -> AsyncIterator[R]:
        """The loaded model, which stays until the block ends; raises `NotFound` and `Unavailable`."""
        if name not in self.places:
            raise NotFound("model", name, self.places, param="model", code="model_not_found")
        place = self.places[name]
        while (model := place.usable()) is None:
            async with self._turn:
                if place.usable() is None:
                    await self._bring(place)
        place.users += 1
        try:
            yield model
        finally:
            place.users -= 1
            self._clock += 1
            place.used = self._clock
            if place.users == 0:
                self._idle(place)

    def state(self, name: str) -> ModelState:
        return self.places[name].state()

    async def aclose(self) -> None:
        for place in self.places.values():
            if place.timer:
                place.timer.cancel()
            await asyncio.to_thread(place.close)
        await asyncio.gather(*self._closing)

    async def _bring(self, place: Place[R]) -> None:
        """Load a model in its turn, after others have made room for it."""
        if place.model is not None:  # it broke
            await asyncio.to_thread(place.close)
        if self.budget is not None and place.size > self.budget:
            raise Unavailable(
                f"`{place.name}` takes {format_size(place.size)}, and `memory` is {format_size(self.budget)}"
            )
        while self.budget is not None and self._taken() + place.size > self.budget:
            # the idle first, then the one that was used the longest ago
            here = [other for other in self.places.values() if other.model is not None]
            await self._let_go(min(here, key=lambda other: (other.users > 0, other.used)))
        place.loading = True
        try:
            await asyncio.to_thread(place.open)
        finally:
            place.loading = False
        if place.model and place.model.broken:
            raise Unavailable(f"`{place.name}` broke at once: {place.model.broken}")

    async def _let_go(self, place: Place[R]) -> None:
        """Wait until nobody uses a model, letting nobody new in, and unload it."""
        place.leaving = True
        try:
            place.left.clear()
            if place.users:
                await place.left.wait()
            await asyncio.to_thread(place.close)
        finally:
            place.leaving = False

    def _idle(self, place: Place[R]) -> None:
        place.left.set()
        if place.timer:
            place.timer.cancel()
        if self.keep_alive is not None:
            loop = asyncio.get_running_loop()
            place.timer = loop.call_later(self.keep_alive, self._expire, place, place.used)

    def _expire(self, place: Place[R], used: int) -> None:
        if place.users == 0 and place.used == used and place.model is not None:
            task = asyncio.create_task(self._unload(place, used))
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    async def _unload(self, place: Place[R], used: int) -> None:
        async with self._turn:
            if place.users == 0 and place.used == used:
                await self._let_go(place)

    def _taken(self) -> int:
        return sum(place.size for place in self.places.values() if place.model is not None)

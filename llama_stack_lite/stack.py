"""The stack: every configured provider, built once, and every model found by name in memory."""

import inspect
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .api.agents import PREFIX
from .api.files import Files
from .api.inference import Inference
from .api.models import Kind, ModelCard, ModelState
from .api.safety import Safety
from .api.tools import Tools
from .api.vector_io import VectorIO
from .config import StackConfig
from .config import config_of as config_of
from .errors import ConfigError, InvalidRequest, NotFound, StackError
from .plugins import find as find
from .plugins import load
from .plugins import plugins as plugins
from .safety.judge import Judge

if TYPE_CHECKING:
    from .state.store import Store

P = TypeVar("P")

MODEL_NOT_FOUND = {"param": "model", "code": "model_not_found"}
CALLS = {"chat": "chat", "embedding": "embed", "rerank": "rerank"}


class Registry(dict[str, P], Generic[P]):
    """Providers of one API by the name the distribution gave them."""

    def __missing__(self, name: str) -> P:
        raise NotFound("provider", name, self)


@dataclass(frozen=True, slots=True)
class Model:
    """A model as the stack serves it: `id` is `provider/name`, `name` what its provider calls it."""

    id: str
    name: str
    provider_name: str
    provider: Inference
    card: ModelCard

    @property
    def in_process(self) -> bool:
        """Whether nothing that it is asked leaves this process: only models of our own have a state."""
        return hasattr(self.provider, "state")

    @property
    def state(self) -> ModelState | None:
        """Whether it is in memory, or why not; None of a model that is not in this process."""
        found: ModelState | None = self.provider.state(self.name) if hasattr(self.provider, "state") else None
        return found


@dataclass
class Stack:
    """A provider may depend on the APIs above its own; field order is the whole dependency graph."""

    config: StackConfig
    inference: Registry[Inference] = field(default_factory=Registry)
    models: dict[str, Model] = field(default_factory=dict)
    safety: Registry[Safety] = field(default_factory=Registry)
    tools: Registry[Tools] = field(default_factory=Registry)

    store: "Store" = field(init=False)  # only where the distribution has `storage`, as is all below
    files: Registry[Files] = field(default_factory=Registry)
    vector_io: Registry[VectorIO] = field(default_factory=Registry)
    sweeping: Any = None
    ingestion: Any = None
    agents: Any = None

    def __post_init__(self) -> None:
        self.judge = Judge(self.config.enforce, self.safety, points=self.config.touchpoints())

    @classmethod
    async def build(cls, config: StackConfig) -> Self:
        """Build every provider that the distribution names; on an error, close those already built."""
        stack = cls(config)
        try:
            stack._create("inference")
            for name, provider in stack.inference.items():
                for card in await provider.models():
                    stack.models[f"{name}/{card.id}"] = Model(
                        f"{name}/{card.id}", card.id, name, provider, card
                    )
            stack._check_defaults()
            stack._create("safety")
            await stack.judge.start()
            stack._create("tools")
            if url := config.database():
                await stack._keep(url)
        except BaseException:
            await stack.aclose()
            raise
        return stack

    @classmethod
    def of(cls, connection: HTTPConnection) -> "Stack":
        """The stack of the application that a request came to.

        Called by each handler: as a plain FastAPI dependency it would run in a thread, which costs more than
        all else that happens to a short request.
        """
        found: Stack = connection.app.state.stack
        return found

    def _create(self, api: str) -> None:
        for name, entry in self.config.providers()[api].items():
            cls = find(api, entry.provider)
            needs = {"stack": self} if "stack" in inspect.signature(cls).parameters else {}
            getattr(self, api)[name] = cls(cls.Config(**entry.settings), **needs)

    async def _keep(self, url: str) -> None:
        """Open what is kept, and go on with what was not done when it was closed."""
        self.store = await load("llama_stack_lite.state.store:Store", extra="agents").open(url)
        self._create("files")
        if self.files:
            self.sweeping = load("llama_stack_lite.uploads:Sweeping", extra="agents")(self).start()
        self._create("vector_io")
        if self.vector_io:
            self.ingestion = load("llama_stack_lite.rag.ingestion:Ingestion", extra="documents")(self).start()
        self.agents = await load("llama_stack_lite.agent.agents:Agents", extra="agents")(self).start()

    def _check_defaults(self) -> None:
        kinds: dict[str, Kind] = {"model": "chat", "embedding_model": "embedding", "rerank_model": "rerank"}
        for key, kind in kinds.items():
            if name := getattr(self.config.defaults, key):
                try:
                    self.model(name, kind)
                except StackError as error:
                    raise ConfigError(f"defaults.{key}: {error}") from error

    def named(self, name: str, kind: Kind = "chat") -> Model:
        """Resolve `provider/model`, or a bare `model` while it is unique.

        `kind` is what a model is taken for that only a remote server knows. Raises `NotFound` naming close
        ones, `InvalidRequest` where the name is ambiguous.
        """
        found = self.models.get(name) or self._bare(name) or self._unlisted(name, kind)
        if found is None:
            if name.startswith(PREFIX):
                raise NotFound("model", name, why="only chats can ask an agent", **MODEL_NOT_FOUND)
            raise NotFound("model", name, self.models, **MODEL_NOT_FOUND)
        return found

    def model(self, name: str, kind: Kind) -> Model:
        """Resolve a name to a model of that kind; raises `InvalidRequest` where it is of another."""
        found = self.named(name, kind)
        if found.card.kind != kind or not hasattr(found.provider, CALLS[kind]):
            able = [m.id for m in self.models.values() if m.card.kind == kind]
            raise InvalidRequest(
                f"`{found.id}` is no {kind} model; {', '.join(able) or 'none here'} would be", param="model"
            )
        return found

    def agents_of(self, name: str) -> Any:
        """What answers for the agent that a request's `model` names; raises `NotFound` where nothing does."""
        if self.agents is None:
            raise NotFound("model", name, why="agents need `storage` in the distribution", **MODEL_NOT_FOUND)
        return self.agents

    def _bare(self, name: str) -> Model | None:
        found = [model for model in self.models.values() if model.name == name]
        if len(found) > 1:
            ids = " or ".join(model.id for model in found)
            raise InvalidRequest(f"`{name}` is served by several providers: say {ids}", param="model")
        return found[0] if found else None

    def _unlisted(self, name: str, kind: Kind) -> Model | None:
        """A remote server whose list could not be read may still know the model: let it answer."""
        provider_name, _, rest = name.partition("/")
        provider = self.inference.get(provider_name)
        if provider is None or not rest or not getattr(provider, "unlisted", False):
            return None
        card = ModelCard.model_construct(id=rest, kind=kind)
        return Model(name, rest, provider_name, provider, card)

    def pull(self) -> str | None:
        """The command that gets the models whose files are missing; None where none is."""
        states = [(model.card.id, model.state) for model in self.models.values()]
        missing = [name for name, state in states if state and state.state == "missing"]
        return f"llama-lite pull {' '.join(missing)}" if missing else None

    async def aclose(self) -> None:
        """Close what is at work, then every provider that has something to close, last built first."""
        if self.agents:
            await self.agents.aclose()
        if self.ingestion:
            await self.ingestion.aclose()
        if self.sweeping:
            await self.sweeping.aclose()
        for api in reversed(self.config.providers()):
            for provider in reversed(getattr(self, api).values()):
                if hasattr(provider, "aclose"):
                    await provider.aclose()
        if hasattr(self, "store"):
            await self.store.aclose()


class SafetyOff:
    """Says `safety: off` in every answer of a server that lets anything pass unjudged."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def marked(message: Message) -> None:
            if message["type"] == "http.response.start" and scope["app"].state.stack.judge.off:
                message["headers"] = [*message["headers"], (b"safety", b"off")]
            await send(message)

        await self.app(scope, receive, marked if scope["type"] == "http" else send)

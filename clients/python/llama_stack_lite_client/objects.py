"""What a server answers with: the fields that are known are typed, and all others are kept."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict

T = TypeVar("T")


class Object(BaseModel):
    """Some JSON object; fields that this version does not know are attributes too."""

    model_config = ConfigDict(extra="allow", defer_build=True, protected_namespaces=())


class Page(Object, Generic[T]):
    """Some of a list. Where `has_more`, the next page comes `after` the `last_id`."""

    data: list[T]
    has_more: bool = False
    first_id: str | None = None
    last_id: str | None = None


class Deleted(Object):
    id: str
    deleted: bool = True


class Health(Object):
    """`safety` is `off` while anything leaves unjudged."""

    status: str
    safety: str | None = None


class Model(Object):
    id: str
    kind: str = "chat"


class Safety(Object):
    """Which shield withheld an answer, and where."""

    shield: str
    touchpoint: str
    categories: list[str] = []
    score: float | None = None


# ---------------------------------------------------------------- chat


class ChatUsage(Object):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0


class ChatFunction(Object):
    name: str = ""
    arguments: str = ""


class ChatToolCall(Object):
    id: str = ""
    index: int = 0
    function: ChatFunction = ChatFunction()


class ChatMessage(Object):
    """A whole message, or in a chunk what is new in one."""

    role: str | None = None
    content: str | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[ChatToolCall] | None = None


class ChatChoice(Object):
    index: int = 0
    message: ChatMessage
    finish_reason: str
    safety: Safety | None = None


class ChatCompletion(Object):
    id: str
    model: str
    choices: list[ChatChoice]
    usage: ChatUsage | None = None

    @property
    def text(self) -> str:
        """What the first choice says: its refusal, where it is one."""
        message = self.choices[0].message
        return message.content or message.refusal or ""

    @property
    def refusal(self) -> str | None:
        return self.choices[0].message.refusal


class ChatDelta(Object):
    index: int = 0
    delta: ChatMessage = ChatMessage()
    finish_reason: str | None = None
    safety: Safety | None = None


class ChatChunk(Object):
    id: str = ""
    model: str = ""
    choices: list[ChatDelta]
    usage: ChatUsage | None = None

    @property
    def text(self) -> str:
        """What is new in the first choice."""
        delta = self.choices[0].delta if self.choices else ChatMessage()
        return delta.content or delta.refusal or ""


# ---------------------------------------------------------------- embeddings, shields


class Embedding(Object):
    index: int
    embedding: list[float]


class Embeddings(Object):
    """One vector for each input, in order."""

    data: list[Embedding]
    model: str
    usage: ChatUsage = ChatUsage()


class Moderation(Object):
    """`categories` and `category_scores` are OpenAI's, `shield_categories` the shield's own codes."""

    flagged: bool
    categories: dict[str, bool] = {}
    category_scores: dict[str, float] = {}
    shield_categories: list[str] = []
    shield_score: float | None = None


class Moderations(Object):
    """One result for each input, in order."""

    id: str
    model: str
    results: list[Moderation]


class Shield(Object):
    identifier: str
    touchpoints: list[str] = []
    categories: dict[str, str] = {}
    ready: bool = True


class Violation(Object):
    user_message: str
    violation_level: str = "error"
    metadata: dict[str, Any] = {}


class ShieldAnswer(Object):
    """`violation` is None where the shield lets the message pass."""

    violation: Violation | None = None


# ---------------------------------------------------------------- what is kept


class Conversation(Object):
    id: str
    created_at: int
    metadata: dict[str, str] = {}


class Prompt(Object):
    """A version of a stored prompt."""

    prompt_id: str
    prompt: str
    version: int
    variables: list[str] = []
    is_default: bool = False


class NamedAgent(Object):
    """One version of an agent that the server knows by name: `model="agent:<name>"` talks to it."""

    id: str
    name: str
    version: int
    model: str | None = None
    instructions: str | None = None
    description: str | None = None
    tools: list[Any] = []

"""Llama Guard 3 as a shield, on whatever provider serves it."""

import asyncio
import logging
import os.path
import re
from collections.abc import Sequence
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from llama_stack_lite.api.safety import Turn, Verdict
from llama_stack_lite.errors import ConfigError, ContextOverflow, InvalidRequest, StackError, UpstreamError
from llama_stack_lite.stack import Model, Stack

from .asking import MOST_TOKENS, Answer, chat, complete, message, messages
from .policy import Category, Code, Policy, Variant
from .prompt import BEGIN, Said, body, conversation, full_prompt, windows
from .verdict import NoVerdict, Thresholds, read, verdict_of

log = logging.getLogger(__name__)

UNKNOWN_CONTEXT = 2048  # tokens: of a server that does not say, and may cut off without a word
DENSE = 3  # bytes in a token, of text that takes many; what takes more yet is judged in smaller windows
LEAST = 64  # bytes: a window is made no smaller
HELLO = Said("User", "Hello.")

Share = Annotated[float, Field(ge=0, le=1)]


class LlamaGuard:
    """Judges by the categories of Llama Guard 3, or by an operator's own.

    `score` is the probability that the model's answer begins with `unsafe`, where its provider gives
    probabilities. What is longer than its context is judged in windows that overlap.
    """

    class Config(BaseModel):
        model_config = ConfigDict(extra="forbid")
        model: str = Field(min_length=1, description="a Llama Guard 3, as `provider/model`")
        required: bool = Field(
            True, description="do not start without it; else guard once its files are here"
        )
        variant: Literal["auto", "8b", "1b", "11b-vision"] = Field(
            "auto", description="by default as its name says"
        )
        categories: list[str] | dict[Code, Category] | None = Field(
            None, description="some of the model's own codes, or codes of yours with `name` and `description`"
        )
        excluded_categories: list[str] = []
        threshold: Share = Field(0.5, description="the score from which on a turn is flagged")
        thresholds: dict[str, Share] = Field({}, description="the same by category")
        prompt: Literal["auto", "raw", "messages"] = Field(
            "auto",
            description="`messages` for a server that applies the guard's own template, such as Ollama",
        )
        context: int | None = Field(
            None, ge=512, description="tokens that the model reads at once; by default what its card says"
        )

        @model_validator(mode="after")
        def _makes_a_policy(self) -> Self:
            self.policy().check("thresholds", self.thresholds)
            if self.prompt == "messages" and isinstance(self.categories, dict):
                raise ConfigError(
                    "categories: with `prompt: messages` the guard reads those of the server's own template, "
                    "so your own need `prompt: raw`"
                )
            return self

        def kind(self) -> Variant:
            """The variant, by the model's name where it is not said."""
            if self.variant != "auto":
                return self.variant
            name = self.model.lower()
            if "vision" in name or "11b" in name:
                return "11b-vision"
            return "1b" if re.search(r"(?<![\d.])1b", name) else "8b"

        def policy(self) -> Policy:
            """What to judge by; raises `ConfigError` for codes that do not exist, and where none is left."""
            found = Policy.standard(self.kind())
            if isinstance(self.categories, dict):
                found = Policy(self.categories)
            elif self.categories is not None:
                found = found.only(self.categories)
            return found.without(self.excluded_categories)

    def __init__(self, config: Config, stack: Stack) -> None:
        self.config = config
        self.stack = stack
        self.policy = config.policy()
        self.thresholds = Thresholds(config.threshold, config.thresholds)
        self.sees_images = config.kind() == "11b-vision"
        self._proved = False
        self._proving = asyncio.Lock()
        self._density = DENSE
        # whether the prompt around an image is that of the guard's own template
        self._shows_images = config.prompt == "messages"

    def categories(self) -> dict[str, str]:
        return {code: category.name for code, category in self.policy.active.items()}

    async def ready(self) -> bool:
        async with self._proving:
            self._proved = self._proved or await self._proves()
        return self._proved

    async def check(self, turns: list[Turn]) -> Verdict:
        model = self._model()
        *before, last = conversation(turns)
        room = self._room(model)
        before = _latest(before, room // 2)
        texts = list(windows(last.text, room - sum(said.size for said in before)))
        images = self._images(turns)
        # the model sees one at a time
        questions: list[tuple[str, str | None]] = [(texts[0], image) for image in images[:-1]]
        questions += [(text, images[-1] if images else None) for text in texts]
        found = []
        for text, seen in questions:
            found.append(await self._judge(model, [*before, Said(last.role, text)], seen))
            if found[-1].flagged:
                break
        return _worst(found)

    # ------------------------------------------------------------ at start

    async def _proves(self) -> bool:
        """Whether the model is here and gives verdicts; raises `ConfigError` where it gives others."""
        model = self._model()
        state = model.state
        if state and state.state == "missing":
            if self.config.required:
                raise ConfigError(f"the guard's model `{model.id}` is not on this machine: {state.detail}")
            return False
        try:
            answer = await self._answer(model, [HELLO])
            read(answer.text)
        except NoVerdict as error:
            raise ConfigError(
                f"`{model.id}` is no Llama Guard: asked to judge a greeting, it says neither safe nor unsafe"
            ) from error
        except UpstreamError as error:
            if self.config.required:
                raise ConfigError(f"the guard's model `{model.id}` cannot be asked: {error}") from error
            log.warning("nothing is guarded by %s, which cannot be asked: %s", model.id, error)
            return False
        except StackError as error:
            raise ConfigError(f"the guard's model `{model.id}` does not work: {error}") from error
        if not answer.prompt_tokens:
            self._density = 1  # nobody would see that a prompt was cut, and no token is less than a byte
        self._compare(model)
        return True

    def _model(self) -> Model:
        try:
            model = self.stack.model(self.config.model, "chat")
        except StackError as error:
            raise ConfigError(
                f"the guard's model `{self.config.model}` is not served here: {error}. Name one that is, or "
                "serve it: `llama-lite pull llama-guard-3-1b` gets weights for llama-cpp"
            ) from error
        if self.config.prompt == "raw" and not hasattr(model.provider, "complete"):
            raise ConfigError(f"`{model.id}` takes conversations only: set `prompt: messages`")
        if self._by_template(model) and isinstance(self.config.categories, dict):
            raise ConfigError(
                f"categories: `{model.id}` takes conversations only, so it reads none but its own"
            )
        return model

    def _compare(self, model: Model) -> None:
        """Warn where the template in the model's weights, if they have one, makes another prompt than we."""
        template = getattr(model.provider, "template", None)
        own = template(model.name) if template else None
        if own is None:
            return
        sample = [HELLO, Said("Agent", "Hi.")]
        policy = Policy.standard(self.config.kind())
        ours = full_prompt(policy, sample).removeprefix(BEGIN)
        theirs = []
        for asked in (messages(sample), [message(body(policy, sample))]):
            try:
                theirs.append("".join(piece.text for piece in own.render(asked, None)).removeprefix(BEGIN))
            except InvalidRequest as error:
                theirs.append(str(error))
        if self.config.prompt == "auto" and "<BEGIN CONVERSATION>" in theirs[0]:
            self._shows_images = True
        if ours not in (theirs if self.sees_images else theirs[:1]):
            place = len(os.path.commonprefix([ours, theirs[0]]))
            log.warning(
                "the chat template of %s makes another prompt than ours: %r where we write %r",
                *(model.id, theirs[0][place : place + 40], ours[place : place + 40]),
            )

    # ------------------------------------------------------------ one verdict

    async def _judge(self, model: Model, said: Sequence[Said], image: str | None) -> Verdict:
        """A verdict on the last turn; what turns out too long is judged with less before it, or in halves."""
        *before, last = said
        try:
            answer = await self._answer(model, said, image=image)
        except InvalidRequest as error:
            if not _is_overflow(error) or (not before and last.size <= LEAST):
                raise
        else:
            return verdict_of(answer, policy=self.policy, thresholds=self.thresholds)
        if before:
            return await self._judge(model, said[len(said) // 2 :], image)
        halves = [Said(last.role, text) for text in windows(last.text, last.size * 11 // 20)]
        return _worst([await self._judge(model, [half], image) for half in halves])

    async def _answer(self, model: Model, said: Sequence[Said], *, image: str | None = None) -> Answer:
        """What the model says; raises `ContextOverflow` too where it may not have read everything."""
        if self._shows_images if image else self._by_template(model):
            answer = await chat(model, messages(said, image=image))
        elif image:
            answer = await chat(model, [message(body(self.policy, said), image=image)])
        else:
            answer = await complete(model, _raw(model, full_prompt(self.policy, said)))
        limit = self._context(model)
        if (answer.prompt_tokens or 0) + MOST_TOKENS > limit:
            raise ContextOverflow(limit=limit, prompt=answer.prompt_tokens or 0)
        return answer

    def _by_template(self, model: Model) -> bool:
        return self.config.prompt == "messages" or not hasattr(model.provider, "complete")

    def _context(self, model: Model) -> int:
        return self.config.context or model.card.context_length or UNKNOWN_CONTEXT

    def _room(self, model: Model) -> int:
        """The bytes of conversation that one question may hold, by a guess."""
        frame = Said("User", full_prompt(self.policy, [HELLO])).size
        return max(LEAST, (self._context(model) - MOST_TOKENS) * self._density - frame)

    def _images(self, turns: Sequence[Turn]) -> list[str]:
        """The images to be judged: the last turn's, or else the one that it may speak of."""
        if not self.sees_images:
            return []
        users = [image for turn in turns if turn.role == "user" for image in turn.images]
        return turns[-1].images or users[-1:]


def _raw(model: Model, text: str) -> str:
    """The prompt for this process, or for a server, which puts a BOS before every prompt."""
    return text if model.in_process else text.removeprefix(BEGIN)


def _is_overflow(error: InvalidRequest) -> bool:
    return error.code == ContextOverflow.code or "context" in str(error).lower()


def _latest(said: Sequence[Said], size: int) -> list[Said]:
    """The last turns that have so many bytes at most together."""
    found: list[Said] = []
    for turn in reversed(said):
        size -= turn.size
        if size < 0:
            break
        found.insert(0, turn)
    return found


def _worst(found: Sequence[Verdict]) -> Verdict:
    return max(found, key=lambda each: (each.flagged, each.score or 0))

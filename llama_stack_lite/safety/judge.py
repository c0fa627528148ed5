"""The judge: asks the shields of a touchpoint, remembers what passed, and counts every verdict."""

import asyncio
import hashlib
import logging
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from prometheus_client import Counter

from llama_stack_lite.api.safety import Blocked, Safety, Touchpoint, Turn, Verdict
from llama_stack_lite.config import Enforce
from llama_stack_lite.errors import GuardFailed, InvalidRequest, StackError, Unavailable, did_you_mean

from .normal import normalised

log = logging.getLogger(__name__)

OF_CHATS: tuple[Touchpoint, ...] = ("input", "output", "tool_call", "tool_result")
REMEMBERED = 16_384  # turns that passed, by 20 bytes each
VERDICTS = Counter(
    "llama_lite_guard_verdicts", "What shields said.", ["shield", "touchpoint", "verdict"]
)  # the library adds `_total`


@dataclass(frozen=True, slots=True)
class Heard:
    """A turn in the one form that all shields read, and the digest by which it is known again."""

    turn: Turn
    digest: bytes

    @classmethod
    def of(cls, turn: Turn) -> "Heard":
        plain = turn.model_copy(update={"text": normalised(turn.text)})
        return cls(plain, hashlib.blake2b(plain.model_dump_json().encode(), digest_size=20).digest())


class Judge:
    """The shields that the distribution puts to work, and what they said before."""

    def __init__(
        self, enforce: Enforce, shields: Mapping[str, Safety], *, points: Iterable[Touchpoint] = OF_CHATS
    ) -> None:
        """`points` are the touchpoints that the distribution has any use for."""
        self.enforce = enforce
        self.shields = shields
        self.chatting = {name for point in OF_CHATS for name in enforce.shields(point)}
        self.enforced = {name for point in points for name in enforce.shields(point)}
        self.waiting: set[str] = set()  # those that could not judge when they were last asked
        self.off = not self.enforced  # whether anything leaves unjudged that could be judged
        self._passed: OrderedDict[bytes, None] = OrderedDict()

    async def start(self) -> None:
        """Ask every shield whether it can judge; raises `ConfigError` where one that is required cannot."""
        self.waiting = set(self.shields)
        await self.refresh()

    async def refresh(self) -> None:
        """Ask those that were not ready whether they are by now."""
        for name in sorted(self.waiting):
            if await self.shields[name].ready():
                self.waiting.discard(name)
                log.info("shield %s is ready", name)
        self.off = not self.enforced or bool(self.waiting & self.enforced)

    async def watch(self, added: Iterable[str]) -> "Watch":
        """The shields of one request: the distribution's, and those that the request adds."""
        if self.waiting:
            await self.refresh()
        added = list(dict.fromkeys(added))
        for name in added:
            if name not in self.shields:
                hint = did_you_mean(name, self.shields)
                raise InvalidRequest(f"guardrails: there is no shield `{name}`{hint}", param="guardrails")
            if name in self.waiting:
                raise Unavailable(
                    f"shield `{name}` cannot judge: its model is not here", code="guard_unavailable"
                )
        return Watch(self, tuple(added))

    async def ask(self, name: str, turns: list[Turn], *, touchpoint: Touchpoint) -> Verdict:
        """One shield's verdict on the last turn; raises `GuardFailed` for anything that is none."""
        return await self._verdict(name, [Heard.of(turn).turn for turn in turns], touchpoint)

    async def blocked(
        self, names: Iterable[str], turns: list[Heard], *, touchpoint: Touchpoint
    ) -> Blocked | None:
        """What one of the shields found in the last turn; None where all of them let it pass.

        Raises `GuardFailed` where one could not judge, unless another found something.
        """
        last = turns[-1].turn
        names = [
            name for name in names if last.text.strip() or last.images and self.shields[name].sees_images
        ]
        found = await asyncio.gather(
            *(self._passes(name, turns, touchpoint) for name in names), return_exceptions=True
        )
        for name, verdict in zip(names, found, strict=True):
            if isinstance(verdict, Verdict):
                return Blocked(
                    shield=name, touchpoint=touchpoint, categories=verdict.categories, score=verdict.score
                )
        for verdict in found:
            if isinstance(verdict, BaseException):
                raise verdict
        return None

    async def _passes(self, name: str, turns: list[Heard], touchpoint: Touchpoint) -> Verdict | None:
        """None where the shield lets the turn pass, now or when it last saw the same."""
        key = hashlib.blake2b(
            b"".join([name.encode(), *(each.digest for each in turns)]), digest_size=20
        ).digest()
        if key in self._passed:
            self._passed.move_to_end(key)
            return None
        verdict = await self._verdict(name, [each.turn for each in turns], touchpoint)
        if verdict.flagged:
            return verdict
        self._passed[key] = None
        if len(self._passed) > REMEMBERED:
            self._passed.popitem(last=False)
        return None

    async def _verdict(self, name: str, turns: list[Turn], touchpoint: Touchpoint) -> Verdict:
        shield = self.shields[name]
        if not shield.sees_images:
            turns = [turn.model_copy(update={"images": []}) for turn in turns]
        try:
            async with asyncio.timeout(self.enforce.timeout):
                verdict = await shield.check(turns)
            if not isinstance(verdict, Verdict):
                raise TypeError("a shield answers with a `Verdict`")
        except Exception as error:  # noqa: BLE001 - whatever happens, nothing passes without a verdict
            VERDICTS.labels(name, touchpoint, "error").inc()
            # what broke may have quoted what it was given
            detail = f": {error}" if self.enforce.log_text else ""
            kind = "it took too long" if isinstance(error, TimeoutError) else _kind(error)
            log.error("shield %s could not judge (%s): %s%s", name, touchpoint, kind, detail)
            raise GuardFailed(name, kind) from None
        said = "unsafe" if verdict.flagged else "safe"
        VERDICTS.labels(name, touchpoint, said).inc()
        level = logging.WARNING if verdict.flagged else logging.DEBUG
        text = f": {turns[-1].text!r}" if self.enforce.log_text else ""
        score = "" if verdict.score is None else f", score {verdict.score:.3f}"
        codes = ", ".join(verdict.categories)
        log.log(level, "shield %s (%s): %s %s%s%s", name, touchpoint, said, codes, score, text)
        return verdict


@dataclass(frozen=True, slots=True)
class Watch:
    """The shields of one request, by touchpoint."""

    judge: Judge
    added: tuple[str, ...] = ()

    def shields(self, touchpoint: Touchpoint) -> list[str]:
        own = [name for name in self.judge.enforce.shields(touchpoint) if name not in self.judge.waiting]
        return [*own, *(name for name in self.added if name not in own)]

    def __bool__(self) -> bool:
        """Whether anything of a chat is judged."""
        return bool(self.added or self.judge.chatting - self.judge.waiting)

    async def blocked(
        self, touchpoint: Touchpoint, turns: list[Heard], *, unseen: str | None = None
    ) -> Blocked | None:
        """What the touchpoint's shields found in the last turn.

        Raises `InvalidRequest` where it holds images that none of them can see, or has what is `unseen` by
        all, and the operator's policy is to block that.
        """
        names = self.shields(touchpoint)
        if turns[-1].turn.images and not any(self.judge.shields[name].sees_images for name in names):
            unseen = unseen or "images"
        if unseen and names and self.judge.enforce.images == "block":
            raise InvalidRequest(
                f"no shield of this server can see {unseen}, and its policy is to block what they cannot see",
                param="messages",
                code="content_not_judged",
            )
        return await self.judge.blocked(names, turns, touchpoint=touchpoint) if names else None


def _kind(error: Exception) -> str:
    return error.code or type(error).__name__ if isinstance(error, StackError) else type(error).__name__

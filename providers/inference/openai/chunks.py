"""What an upstream streams, from bytes to chunks of ours; its errors and its nonsense are caught here."""

from collections.abc import Iterator
from typing import Any, Generic, TypeVar

from pydantic import ValidationError
from pydantic_core import from_json

from llama_stack_lite.api.inference import ChatChunk, Completion
from llama_stack_lite.errors import UpstreamError

from .refusals import Detail, nonsense

C = TypeVar("C", ChatChunk, Completion)

LONGEST_EVENT = 32 * 1024 * 1024  # bytes
OURS_TO_SAY = ("id", "object", "created", "model", "usage")
FINISHES = {"function_call": "tool_calls", "eos": "stop", "eos_token": "stop", "max_tokens": "length"}


class Events:
    """Cuts bytes, as the network brings them, into the data of server-sent events, up to `[DONE]`."""

    def __init__(self) -> None:
        self.done = False
        self._rest = b""

    def feed(self, block: bytes) -> list[bytes]:
        """The events that this block completes; LF, CR LF and CR end a line, wherever the network cut."""
        block = self._rest + block
        half = b""
        if b"\r" in block:
            if block.endswith(b"\r"):  # the other half of a CR LF may be in the next block
                block, half = block[:-1], b"\r"
            block = block.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *events, rest = block.split(b"\n\n")
        self._rest = rest + half
        if len(self._rest) > LONGEST_EVENT:
            raise UpstreamError(f"the upstream sent an event of more than {LONGEST_EVENT} bytes")
        return self._data(events)

    def end(self) -> list[bytes]:
        """What is left when the stream ends: an event needs no blank line behind it."""
        return [] if self.done else self._data([self._rest.rstrip(b"\r")])

    def _data(self, events: list[bytes]) -> list[bytes]:
        found = []
        for event in events:
            is_plain = event.startswith(b"data: {") and b"\n" not in event
            data = event[6:] if is_plain else _fields(event)
            if not is_plain and data.strip() == b"[DONE]":
                self.done = True
                break
            if data:
                found.append(data)
        return found


def _fields(event: bytes) -> bytes:
    """The data of an event of several lines, or of another spelling; llama.cpp has written `error: {...}`."""
    pairs = [line.partition(b":")[::2] for line in event.split(b"\n")]
    return b"\n".join(value.removeprefix(b" ") for field, value in pairs if field in (b"data", b"error"))


class Reading(Generic[C]):
    """Makes chunks of the events of one answer, and puts right what servers do in several ways."""

    def __init__(self, kind: type[C], *, upstream: str) -> None:
        self.kind: type[C] = kind
        self.upstream = upstream
        self.usage: Any = None
        self._begun: set[int] = set()
        self._finished: set[int] = set()

    def chunks(self, events: list[bytes]) -> Iterator[C]:
        """The chunk of each event that goes on with a choice; raises `UpstreamError`."""
        for event in events:
            frame = self._frame(event)
            if self._put_right(frame, event):
                yield self._checked(frame, event)

    def joined(self, events: list[bytes]) -> Iterator[C]:
        """Like `chunks`, but text that came at once is one chunk: a whole answer does not show its pieces."""
        last: dict[str, Any] | None = None
        going: dict[str, Any] | None = None  # the choice that more text would go on with
        for event in events:
            frame = self._frame(event)
            if going and (text := _text(frame, going["index"])):
                going["delta"]["content"] += text
            elif self._put_right(frame, event):
                if going and (end := _end(frame, going["index"])):
                    going |= end
                    going = None
                    continue
                if last:
                    yield self._checked(last, event)
                last, going = frame, _unfinished_text(frame)
        if last:
            yield self._checked(last, events[-1])

    def last(self) -> C | None:
        """The chunk with the usage, where there was any; raises `UpstreamError` in mid-answer."""
        if not self._begun or self._begun != self._finished:
            raise UpstreamError(f"{self.upstream} ended its stream in the middle of an answer")
        frame = {"choices": [], "usage": self.usage}
        return self._checked(frame, repr(self.usage).encode()) if self.usage else None

    def _frame(self, event: bytes) -> dict[str, Any]:
        try:
            frame: dict[str, Any] = from_json(event)
            if frame.get("error") or type(frame["choices"]) is not list:
                raise self._broken_off(event)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise self._broken_off(event) from error
        return frame

    def _put_right(self, frame: dict[str, Any], event: bytes) -> bool:
        """Make a frame one of ours, in place; False where it goes on with no choice."""
        self.usage = frame.get("usage") or self.usage
        for key in OURS_TO_SAY:
            frame.pop(key, None)
        try:
            frame["choices"] = [choice for choice in frame["choices"] if self._goes_on(choice)]
        except (AttributeError, TypeError) as error:
            raise nonsense(self.upstream, event) from error
        return bool(frame["choices"])

    def _checked(self, frame: dict[str, Any], event: bytes) -> C:
        try:
            return self.kind.model_validate(frame)
        except ValidationError as error:
            raise nonsense(self.upstream, event) from error

    def _broken_off(self, event: bytes) -> UpstreamError:
        detail = Detail.read(event)
        if detail is None:
            return nonsense(self.upstream, event)
        return UpstreamError(f"{self.upstream} broke its answer off: {detail.message}", code=detail.code)

    def _goes_on(self, choice: dict[str, Any]) -> bool:
        """Put a choice right, in place; False where it was finished before."""
        index = choice.setdefault("index", 0)
        if index in self._finished:
            return False
        if self.kind is ChatChunk:
            choice["delta"] = self._delta(choice.get("delta") or {}, index)
        else:
            choice["text"] = choice.get("text") or ""
        self._begun.add(index)
        if reason := choice.get("finish_reason"):
            self._finished.add(index)
            choice["finish_reason"] = FINISHES.get(reason, reason)
        else:
            choice["finish_reason"] = None
        if stop := choice.pop("matched_stop", None):  # as SGLang calls it
            choice["stop_reason"] = stop
        if not isinstance(choice.get("stop_reason"), str):  # of a stop that is a token, its number
            choice.pop("stop_reason", None)
        return True

    def _delta(self, given: dict[str, Any], index: int) -> dict[str, Any]:
        """A delta without nulls, and with its role in the first of a choice only."""
        delta: dict[str, Any] = without_null(given)
        delta.pop("role", None)
        if "reasoning" in delta:  # as newer vLLM and OpenRouter call it
            delta.setdefault("reasoning_content", delta.pop("reasoning"))
        for position, call in enumerate(delta.get("tool_calls", ())):
            call.setdefault("index", position)
        return delta if index in self._begun else {"role": "assistant", **delta}


def _text(frame: dict[str, Any], index: int) -> str:
    """The text of a frame that says nothing else, and says it of that choice; empty for any other."""
    try:
        (choice,) = frame["choices"]
        text = choice["delta"]["content"]
        is_more = choice.get("finish_reason") or choice.get("logprobs") or frame.get("usage")
        is_plain = type(text) is str and len(choice["delta"]) == 1 and choice["index"] == index
    except (AttributeError, KeyError, TypeError, ValueError):
        return ""
    return text if is_plain and not is_more else ""


def _end(frame: dict[str, Any], index: int) -> dict[str, Any] | None:
    """What a frame says of how that choice ended, where it says nothing else."""
    choice, *others = frame["choices"]
    says_more = others or any(choice["delta"].values()) or choice.get("logprobs")
    if says_more or not choice["finish_reason"] or choice["index"] != index:
        return None
    return {key: value for key, value in choice.items() if key not in ("delta", "logprobs")}


def _unfinished_text(frame: dict[str, Any]) -> dict[str, Any] | None:
    choice: dict[str, Any] = frame["choices"][-1]
    is_text = type(choice.get("delta", {}).get("content")) is str
    return choice if is_text and not choice["finish_reason"] else None


def without_null(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_null(inner) for key, inner in value.items() if inner is not None}
    return [without_null(inner) for inner in value] if isinstance(value, list) else value

"""A model's own chat template: Jinja from its file, rendered so that a request cannot forge a turn."""

import re
import secrets
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

from jinja2 import TemplateError

from llama_stack_lite.api.inference import Message, Tool
from llama_stack_lite.errors import ConfigError, InvalidRequest

from .sandbox import LARGEST, Sandbox, TooSlow, time_limit
from .shapes import Plain, plain, shapes

LIMIT = 2.0  # seconds; a real template takes milliseconds

# what may go wrong in somebody else's program, beside what it raises itself
_FAULTS = (ArithmeticError, AttributeError, LookupError, MemoryError, RecursionError, TypeError, ValueError)
_READS_PARTS_ONLY = re.compile(r"for\s+\w+\s+in\s+\w+(\.content|\[['\"]content['\"]\])")


class Piece(NamedTuple):
    """Prompt text; `special` says whether control tokens written in it are meant."""

    text: str
    special: bool


class ChatTemplate:
    """Renders messages and tools as the model was trained to read them.

    Without a source, turns are plain `User:` and `Assistant:` paragraphs, and `stops` end the answer.
    `specials` are the texts of the control tokens: where a request writes one, it stays text, so that
    nobody can forge a turn. Raises `ConfigError` where the source is no Jinja.
    """

    def __init__(self, source: str | None, *, bos: str, eos: str, specials: Collection[str]) -> None:
        self.stops = [] if source else ["\n\nUser:", "\n\nSystem:"]
        self.source = source or PLAIN_TURNS
        longest_first = sorted(specials, key=len, reverse=True)
        self._specials = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        environment = Sandbox()
        environment.globals |= {"bos_token": bos, "eos_token": eos}
        try:
            self._template = environment.from_string(self.source)
        except (TemplateError, RecursionError) as error:
            raise ConfigError(f"the model's chat template cannot be read: {error}") from error

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Tool] | None,
        *,
        add_generation_prompt: bool = True,
        **extra: Any,
    ) -> list[Piece]:
        """Return the prompt in pieces; one only, unless the request writes a control token.

        `extra` are variables of the template's own, such as `enable_thinking`. Where the template refuses
        the messages, they are tried in the shapes that it may have been written for. Raises
        `InvalidRequest` where it refuses them all, or they hold what it cannot show.
        """
        conversation = plain(
            messages, developer="developer" in self.source, parts=_reads_parts_only(self.source)
        )
        mask = _Mask(self._specials)
        given = {**extra, "add_generation_prompt": add_generation_prompt}
        given["tools"] = mask.hide([tool.model_dump(exclude_none=True) for tool in tools]) if tools else None
        refusal: TemplateError | None = None
        for shape in shapes(conversation):
            try:
                return mask.pieces(self._run(mask.hide(shape), given))
            except TooSlow as error:
                raise InvalidRequest(
                    f"the model's chat template took more than {LIMIT:g} s for these messages",
                    param="messages",
                ) from error
            except TemplateError as error:
                refusal = refusal or error
        raise InvalidRequest(f"the model's chat template refuses: {refusal}", param="messages") from refusal

    def _run(self, messages: list[Plain], given: dict[str, Any]) -> str:
        found, size = [], 0
        try:
            with time_limit(LIMIT):
                for text in self._template.generate(messages=messages, **given):
                    size += len(text)
                    if size > LARGEST:
                        raise TemplateError(f"it makes more than {LARGEST} characters")
                    found.append(text)
        except _FAULTS as error:
            # a template is a program of somebody else's: whatever breaks in it is its refusal
            raise TemplateError(f"{type(error).__name__}: {error}") from error
        return "".join(found)


PLAIN_TURNS = """{%- for message in messages %}
{{- message.role | capitalize }}: {{ message.content }}

{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"""


class _Mask:
    """Puts something harmless in the place of control tokens, and takes it away again after rendering."""

    def __init__(self, specials: re.Pattern[str]) -> None:
        self.specials = specials
        self.hidden: dict[str, str] = {}
        # digits survive `upper` and `title`, and nobody can write a stand-in without knowing them
        self.nonce = str(secrets.randbelow(10**18))

    def hide(self, value: Any) -> Any:
        if isinstance(value, str):
            return self.specials.sub(self._stand_in, value)
        if isinstance(value, dict):
            return {self.hide(key): self.hide(inner) for key, inner in value.items()}
        return [self.hide(inner) for inner in value] if isinstance(value, list) else value

    def _stand_in(self, found: re.Match[str]) -> str:
        name = f"\ue000{self.nonce}.{len(self.hidden)}\ue001"
        self.hidden[name] = found[0]
        return name

    def pieces(self, text: str) -> list[Piece]:
        if not self.hidden:
            return [Piece(text, True)]
        parts = re.split(rf"(\ue000{self.nonce}\.\d+\ue001)", text)
        pieces = [Piece(self.hidden.get(part, part), part not in self.hidden) for part in parts]
        return [piece for piece in pieces if piece.text]


def _reads_parts_only(source: str) -> bool:
    return "is string" not in source and _READS_PARTS_ONLY.search(source) is not None

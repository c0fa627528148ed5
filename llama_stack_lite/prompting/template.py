"""A model's own chat template: Jinja from its file, rendered so that a request cannot forge a turn."""

import re
import secrets
from collections.abc import Callable, Collection, Sequence
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


class ImagePiece(NamedTuple):
    """The place of an image; `number` counts them from 0, in the order of the messages."""

    number: int


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
        given = {**extra, "add_generation_prompt": add_generation_prompt}
        pieces = self._render(messages, tools, _Mask(self._specials), image=None, given=given)
        return [piece for piece in pieces if isinstance(piece, Piece)]

    def render_images(
        self,
        messages: Sequence[Message],
        tools: Sequence[Tool] | None,
        *,
        parts: bool = False,
        add_generation_prompt: bool = True,
        **extra: Any,
    ) -> list[Piece | ImagePiece]:
        """As `render`, for a model that sees: the places of the images are pieces of their own.

        With `parts` the template reads `{"type": "image"}` and writes what the model was trained to find
        there, such as `<|image|>`, and all pieces are text. No request can forge either: an image token
        that it writes is a piece that is not special. Raises `InvalidRequest` where the template leaves
        out an image's place.
        """
        mask = _Mask(self._specials)
        image = (lambda: {"type": "image"}) if parts else mask.image
        given = {**extra, "add_generation_prompt": add_generation_prompt}
        return self._render(messages, tools, mask, image=image, given=given)

    def _render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Tool] | None,
        mask: "_Mask",
        *,
        image: Callable[[], str | Plain] | None,
        given: dict[str, Any],
    ) -> list[Piece | ImagePiece]:
        conversation = plain(
            messages,
            developer="developer" in self.source,
            parts=_reads_parts_only(self.source),
            image=image,
        )
        offered = [tool.model_dump(exclude_none=True) for tool in tools] if tools else None
        given = {**given, "tools": mask.hide(offered)}
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
    """Puts something harmless in the place of control tokens and images, and finds it after rendering."""

    def __init__(self, specials: re.Pattern[str]) -> None:
        self.specials = specials
        self.hidden: dict[str, Piece | ImagePiece] = {}
        self.images = 0
        # digits survive `upper` and `title`, and nobody can write a stand-in without knowing them
        self.nonce = str(secrets.randbelow(10**18))
        self.stand_in = re.compile(rf"(\ue000{self.nonce}\.\d+\ue001)")

    def image(self) -> str:
        """The stand-in of the next image."""
        self.images += 1
        return self._keep(ImagePiece(self.images - 1))

    def hide(self, value: Any) -> Any:
        if isinstance(value, str):
            parts = self.stand_in.split(value)  # every other one is an image's, and stays
            return "".join(part if n % 2 else self._masked(part) for n, part in enumerate(parts))
        if isinstance(value, dict):
            return {self.hide(key): self.hide(inner) for key, inner in value.items()}
        return [self.hide(inner) for inner in value] if isinstance(value, list) else value

    def _masked(self, text: str) -> str:
        return self.specials.sub(lambda found: self._keep(Piece(found[0], False)), text)

    def _keep(self, piece: Piece | ImagePiece) -> str:
        name = f"\ue000{self.nonce}.{len(self.hidden)}\ue001"
        self.hidden[name] = piece
        return name

    def pieces(self, text: str) -> list[Piece | ImagePiece]:
        """The rendered text with what was hidden; raises `TemplateError` where an image is missing."""
        parts = self.stand_in.split(text) if self.hidden else [text]
        found = [self.hidden.get(part, Piece(part, True)) for part in parts if part]
        if len({piece for piece in found if isinstance(piece, ImagePiece)}) < self.images:
            raise TemplateError("it leaves an image out")
        return found or [Piece("", True)]


def _reads_parts_only(source: str) -> bool:
    return "is string" not in source and _READS_PARTS_ONLY.search(source) is not None

"""A model of this machine in another quantization, kept as a model of its own."""

import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pydantic import ValidationError

from .api.models import ModelCard
from .errors import ConfigError, InvalidRequest, StackError
from .models import catalogue, folder_of, installed, keep, locked, paths, publish
from .plugins import find

Progress = Callable[[int, int], None]
LATER_SPLIT = re.compile(r"-\d{5}-of-\d{5}\.gguf$")


@dataclass(frozen=True, slots=True)
class Quantized:
    """A new model: its card and file, and sentences on what the quantization did to it."""

    card: ModelCard
    path: Path
    remarks: list[str]


def quantize(
    model: ModelCard,
    kind: str,
    *,
    identifier: str | None = None,
    force: bool = False,
    progress: Progress = lambda *_: None,
) -> Quantized:
    """Make `<id>-<type>` of a model that is here, with llama.cpp; `progress(done, total)` counts tensors.

    The new model appears when it is whole. Raises `ConfigError` where the source is not here,
    `InvalidRequest` for an unknown type or an id that is taken (`force` replaces a model that was made or
    pulled under it, but never the source or one of the catalogue), `StackError` where llama.cpp fails.
    """
    kind = kind.lower()
    source = gguf(model)
    card = _card(model, kind, identifier or f"{model.id}-{kind}")
    target = folder_of(card.id) / card.files[0].name
    part = target.with_name(f".{target.name}.part")
    try:
        with locked(card.id):
            _refuse_taken(card.id, source, force=force)
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                remarks = find("inference", "llama-cpp").quantize(source, part, kind, progress)
                _put(part, target, card)
            finally:
                part.unlink(missing_ok=True)
                with suppress(OSError):  # a model lies in it
                    target.parent.rmdir()
    except OSError as error:
        raise StackError(f"{card.id}: {error.strerror or error} ({error.filename or target})") from error
    return Quantized(card, target, remarks)


def gguf(model: ModelCard) -> Path:
    """The weights of a model; raises `ConfigError` where they are not here, or no GGUF file."""
    files = [path for name, path in paths(model).items() if name.endswith(".gguf") and "mmproj" not in name]
    if not files:
        raise ConfigError(f"{model.id} has no .gguf file, and llama.cpp quantizes no other")
    return files[0]


def _card(model: ModelCard, kind: str, identifier: str) -> ModelCard:
    """The model's card under a new id; files beside its weights are used where they are."""
    weights = gguf(model)
    name = f"{PurePosixPath(identifier).name}.gguf"
    places = {name: folder_of(identifier) / name} | {
        other: path
        for other, path in paths(model).items()
        if path != weights and not LATER_SPLIT.search(other)  # the quantizer reads these, and joins them
    }
    files = [{"name": name, "sources": [f"file:{path}"]} for name, path in places.items()]
    facts = model.model_dump() | {"id": identifier, "quantization": kind.upper(), "requantize": None}
    try:
        return ModelCard.model_validate(facts | {"files": files})
    except ValidationError as error:
        raise InvalidRequest(f"`{identifier}` cannot be a model's id", param="id") from error


def _refuse_taken(identifier: str, source: Path, *, force: bool) -> None:
    if identifier in catalogue() or source.parent == folder_of(identifier):
        raise InvalidRequest(f"`{identifier}` is another model: give the new one an --id", param="id")
    if not force and any(entry.card.id == identifier for entry in installed()):
        raise InvalidRequest(
            f"`{identifier}` is here already: --force replaces it, --id gives the new one another name",
            param="id",
        )


def _put(part: Path, target: Path, card: ModelCard) -> None:
    """Let a whole model appear, and what it replaces go."""
    keep(card)
    publish(part, target)
    for path in target.parent.iterdir():
        if path.is_file() and path not in (target, target.with_name(".card.json")):
            path.unlink()

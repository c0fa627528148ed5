"""A configuration as a tree whose every value knows where it was written."""

from collections.abc import Mapping
from dataclasses import dataclass

from llama_stack_lite.errors import ConfigError

Scalar = str | int | float | bool | None
Plain = Scalar | list["Plain"] | dict[str, "Plain"]
Path = tuple[str | int, ...]


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """A line and column of a source, both from 1, or one `--set` (line 0); in the order of reading."""

    source: int
    line: int
    column: int
    name: str

    def __str__(self) -> str:
        return f"{self.name}:{self.line}:{self.column}" if self.line else self.name


@dataclass(frozen=True, slots=True)
class Node:
    """A value, its place and its key's.

    `text` is what stood there where the type of a scalar was guessed; `plain` says that it had no quotes.
    """

    value: "Scalar | list[Node] | dict[str, Node]"
    place: Place
    key: Place | None = None
    text: str | None = None
    plain: bool = False

    def child(self, step: str | int) -> "Node | None":
        if isinstance(self.value, dict) and isinstance(step, str):
            return self.value.get(step)
        if isinstance(self.value, list) and isinstance(step, int) and 0 <= step < len(self.value):
            return self.value[step]
        return None

    def at(self, path: Path) -> "Node":
        """The node at a path, or the closest above it."""
        node = self
        for step in path:
            if (child := node.child(step)) is None:
                break
            node = child
        return node

    def data(self) -> Plain:
        """The values alone."""
        if isinstance(self.value, dict):
            return {key: node.data() for key, node in self.value.items()}
        if isinstance(self.value, list):
            return [node.data() for node in self.value]
        return self.value


def entries(node: Node | None) -> Mapping[str, Node]:
    """The children of a mapping; none where there is no mapping."""
    return node.value if node and isinstance(node.value, dict) else {}


def merge(left: Node, right: Node) -> Node:
    """Mappings merge by key; anything else is replaced; null on the right takes the key away."""
    if not (isinstance(left.value, dict) and isinstance(right.value, dict)):
        return right
    merged = dict(left.value)
    for key, node in right.value.items():
        if node.value is None:
            merged.pop(key, None)
        else:
            merged[key] = merge(merged[key], node) if key in merged else node
    return Node(merged, left.place, left.key)


def prune(node: Node, depth: int) -> Node:
    """Take away the keys whose value is null, down to a depth: they are as good as not there."""
    if depth == 0 or not isinstance(node.value, dict):
        return node
    kept = {key: prune(child, depth - 1) for key, child in node.value.items() if child.value is not None}
    return Node(kept, node.place, node.key)


def dotted(path: Path) -> str:
    """Write `("inference", "local", "models", 0)` as `inference.local.models[0]`."""
    text = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)
    return text.removeprefix(".")


class Problems:
    """The mistakes found so far."""

    def __init__(self) -> None:
        self._found: list[tuple[Place, Path, str]] = []
        self._closed: set[Path] = set()

    def add(self, place: Place, path: Path, what: str, *, below: bool = False) -> None:
        """Add a mistake, and say nothing more of its value unless that may hold others `below`."""
        if self.known(path):
            return
        self._found.append((place, path, " ".join(what.split())))
        if path and not below:
            self._closed.add(path)

    def known(self, path: Path) -> bool:
        """Whether the value at a path, or one that holds it, is a mistake already."""
        return any(path[:length] in self._closed for length in range(len(path) + 1))

    def raise_any(self) -> None:
        """Raise a `ConfigError` of one line for each mistake, in the order of the sources."""
        if self._found:
            raise ConfigError("\n".join(_line(*found) for found in sorted(self._found, key=lambda f: f[0])))


def _line(place: Place, path: Path, what: str) -> str:
    name = dotted(path)
    return f"{place} {name}: {what}" if name and place.name != set_name(name) else f"{place}: {what}"


def set_name(key: str) -> str:
    """How an override is named in messages; its value may be a secret."""
    return f"--set {key}=..."

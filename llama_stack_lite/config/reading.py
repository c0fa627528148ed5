"""Sources and overrides as trees: a file, a shipped distribution, or `--set a.b.c=value`."""

from collections.abc import Callable
from dataclasses import replace
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path as FilePath

import yaml

from llama_stack_lite.errors import did_you_mean

from .scalars import TAG, TAGGED, scalar, typed
from .tree import Node, Path, Place, Problems, set_name

MOST_NODES = 10_000  # aliases of aliases grow without end
MOST_LEVELS = 50
HINTS = {  # by a part of PyYAML's message; none repeats what may be a badly quoted secret
    r"'\t'": "a tab cannot indent or begin a value; use spaces",
    "another document": "a second document begins; one file holds one",
    "undefined alias": "an alias without its anchor; put text that begins with * in quotes",
    "duplicate anchor": "this anchor is used twice; put text that begins with & in quotes",
    "tag handle": TAGGED,
}


class Unreadable(Exception):
    """A source that cannot be read any further: where, and why."""

    def __init__(self, place: Place, what: str, path: Path = ()) -> None:
        super().__init__(what)
        self.place, self.path = place, path


def shipped() -> dict[str, Traversable]:
    """The distributions that come with the package, by name."""
    folder = resources.files("llama_stack_lite.distributions")
    files = sorted(folder.iterdir(), key=lambda file: file.name)
    return {file.name.removesuffix(".yaml"): file for file in files if file.name.endswith(".yaml")}


def read_source(source: str, order: int, problems: Problems) -> Node | None:
    """Read a file or a shipped distribution; what is wrong with it is added to `problems`."""
    try:
        known = shipped()
        file = known.get(source)
        name = file.name if file else source
        text = _text(file or FilePath(source), Place(order, 0, 0, name), known)
        return _read(text, name, order, problems)
    except Unreadable as error:
        problems.add(error.place, error.path, str(error))
        return None


def _text(file: Traversable, place: Place, known: dict[str, Traversable]) -> str:
    try:
        data = file.read_bytes()
    except FileNotFoundError:
        close = did_you_mean(str(file), known) or f"; shipped: {', '.join(known)}"
        raise Unreadable(place, f"no such file, and no distribution of that name{close}") from None
    except IsADirectoryError:
        raise Unreadable(place, "is a folder; name a YAML file in it") from None
    except (OSError, ValueError) as error:  # a name with a NUL is a ValueError
        raise Unreadable(place, f"cannot be read: {getattr(error, 'strerror', None) or error}") from None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = data[: error.start].decode("utf-8-sig", errors="replace")
        raise Unreadable(_place_after(before, place), "is not UTF-8; save the file as UTF-8") from None


def _place_after(text: str, place: Place) -> Place:
    lines = text.split("\n")
    return replace(place, line=len(lines), column=len(lines[-1]) + 1)


def _marked(place: Place, mark: yaml.Mark) -> Place:
    return replace(place, line=mark.line + 1, column=mark.column + 1)


def _read(text: str, name: str, order: int, problems: Problems) -> Node:
    place = Place(order, 1, 1, name)
    root = _compose(text, place)
    if root is None:
        raise Unreadable(place, "the file is empty; `llama-lite distro show starter` prints one that is not")
    tree = Graph(lambda mark: _marked(place, mark), problems).node(root, ())
    if not isinstance(tree.value, dict):
        raise Unreadable(tree.place, "must be a mapping of sections, such as `inference:`")
    return tree


def _compose(text: str, place: Place) -> yaml.Node | None:
    try:
        return yaml.compose(text, yaml.SafeLoader)
    except yaml.reader.ReaderError as error:
        where = _place_after(text[: error.position], place)
        raise Unreadable(where, f"the character U+{ord(text[error.position]):04X} is not allowed") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        raise Unreadable(_marked(place, mark) if mark else place, _words(error)) from None
    except RecursionError:
        raise Unreadable(place, f"is nested deeper than {MOST_LEVELS} levels") from None


def _words(error: yaml.MarkedYAMLError) -> str:
    said = " ".join(part for part in (error.problem, error.context) if part)
    for sign, what in HINTS.items():
        if sign in said:
            return what
    opened, mark = error.context_mark, error.problem_mark
    begins = f" that begins in line {opened.line + 1}" if opened and mark and opened.line != mark.line else ""
    return f"is no YAML: {said}{begins}"


class Graph:
    """Walks PyYAML's nodes, in which an alias is the very node that its anchor marks."""

    def __init__(self, place_of: Callable[[yaml.Mark], Place], problems: Problems) -> None:
        self._place_of, self._problems = place_of, problems
        self._count = 0
        self._above: list[yaml.Node] = []

    def node(self, node: yaml.Node, path: Path, key: Place | None = None) -> Node:
        place = self._place_of(node.start_mark)
        self._count += 1
        if self._count > MOST_NODES:
            raise Unreadable(place, f"aliases make more than {MOST_NODES} values of this", path[:2])
        if any(node is above for above in self._above):
            raise Unreadable(key or place, "an alias that holds itself", path)
        if len(self._above) >= MOST_LEVELS:
            raise Unreadable(place, f"is nested deeper than {MOST_LEVELS} levels", path[:2])
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, path, key)
        if node.tag not in (f"{TAG}map", f"{TAG}seq"):
            self._problems.add(place, path, TAGGED)
        self._above.append(node)
        try:
            if isinstance(node, yaml.MappingNode):
                return Node(self._mapping(node, path), place, key)
            children = [self.node(child, (*path, index)) for index, child in enumerate(node.value)]
            return Node(children, place, key)
        finally:
            self._above.pop()

    def _scalar(self, node: yaml.ScalarNode, path: Path, key: Place | None) -> Node:
        place = self._place_of(node.start_mark)
        try:
            return Node(scalar(node), place, key, plain=node.style is None)
        except ValueError as error:
            self._problems.add(place, path, str(error))
            return Node(None, place, key)

    def _mapping(self, node: yaml.MappingNode, path: Path) -> dict[str, Node]:
        own: dict[str, Node] = {}
        merged: dict[str, Node] = {}
        for key, value in node.value:
            place = self._place_of(key.start_mark)
            if not isinstance(key, yaml.ScalarNode):
                self._problems.add(place, path, "a key must be plain text")
            elif key.tag == f"{TAG}merge":
                merged |= self._merged(value, path)
            elif (name := str(key.value)) in own:
                self._problems.add(place, (*path, name), _twice(own[name]), below=True)
            else:
                own[name] = self.node(value, (*path, name), place)
        return merged | own

    def _merged(self, node: yaml.Node, path: Path) -> dict[str, Node]:
        """The keys that `<<:` takes from an alias, or from several of which the first wins."""
        tree = self.node(node, path)
        found: dict[str, Node] = {}
        for source in reversed(tree.value) if isinstance(tree.value, list) else [tree]:
            if not isinstance(source.value, dict):
                self._problems.add(source.place, (*path, "<<"), "must be an alias of a mapping")
                continue
            found |= source.value
        return found


def _twice(first: Node) -> str:
    line = first.key.line if first.key else 0
    return f"is given twice; first in line {line}" if line else "is given twice"


def read_override(override: str, order: int, problems: Problems) -> Node | None:
    """Read `a.b.c=value` as a tree of that one value.

    Only brackets, braces and quotes make YAML of the value; all else is one scalar, so that no address and no
    key needs quoting.
    """
    key, equals, text = override.partition("=")
    steps = key.strip().split(".")
    place = Place(order, 0, 0, set_name(key.strip()))
    if not equals or not all(steps):
        shown = place.name if equals else f"--set {key}"
        problems.add(replace(place, name=shown), (), "must be section.key=value, such as server.port=8080")
        return None
    try:
        tree = _value(text.strip(), place, tuple(steps), problems)
    except Unreadable as error:
        problems.add(place, error.path, str(error))
        return None
    for step in reversed(steps):
        tree = Node({step: replace(tree, key=place)}, place)
    return tree


def _value(text: str, place: Place, path: Path, problems: Problems) -> Node:
    if text[:1] in ("[", "{", '"', "'"):
        root = _compose(text, place)
        assert root is not None
        return Graph(lambda mark: place, problems).node(root, path)
    value = typed(text)
    return Node(value, place, text=None if isinstance(value, str) else text, plain=True)

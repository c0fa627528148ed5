"""The check of a merged tree: its sections, every plug-in's own keys, and the models it names."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Protocol, TypeVar, runtime_checkable

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from llama_stack_lite.api.models import ModelCard
from llama_stack_lite.api.safety import TOUCHPOINTS
from llama_stack_lite.errors import ConfigError, StackError, did_you_mean
from llama_stack_lite.plugins import config_class

from .agents import check_agents
from .fields import below, models, names
from .sections import Defaults, StackConfig
from .tree import Node, Path, Problems, entries
from .wording import words

M = TypeVar("M", bound=BaseModel)
LISTS = (
    "models",
    "optional",
    "embedding_models",
)  # the keys by which a plug-in's settings say what it serves
OF_KEYS = ("missing", "extra_forbidden")  # mistakes of a key, not of its value
KEPT = ("files", "vector_io")  # sections that need `storage`, and of which one may be the default
Served = dict[str, list[str] | None]  # models by provider name; None where only the provider knows


@runtime_checkable
class KnowsCards(Protocol):
    """A `Config` that can say its models before it runs."""

    def cards(self) -> list[ModelCard]: ...


def check(tree: Node, problems: Problems) -> StackConfig:
    """Validate a tree from which all is expanded; raises `ConfigError` with every mistake known by now."""
    models: Served = {}
    for api in StackConfig().providers():
        served: Served = {}
        for name, entry in entries(tree.child(api)).items():
            checked, served[name] = _provider(api, entry, (api, name), problems)
            tree = _put(tree, (api, name), checked)
        if api == "inference":
            models = served
    _defaults(tree, models, problems)
    _kept(tree, problems)
    _enforced(entries(tree.child("enforce")), list(entries(tree.child("safety"))), problems)
    check_agents(tree, astray=lambda name: _astray(name, models), problems=problems)
    config, _ = _validated(StackConfig, tree, (), problems)
    problems.raise_any()
    assert config is not None
    return config


def _put(tree: Node, path: Path, node: Node) -> Node:
    """The tree with another node at a path."""
    if not path:
        return node
    step, *rest = path
    children = dict(entries(tree))
    children[str(step)] = _put(children[str(step)], tuple(rest), node)
    return replace(tree, value=children)


def _provider(api: str, entry: Node, path: Path, problems: Problems) -> tuple[Node, list[str] | None]:
    """Check an entry by its plug-in's `Config`: the entry as that wants it, and the models it serves."""
    provider = entry.child("provider")
    if provider is None or not isinstance(provider.value, str) or problems.known((*path, "provider")):
        return entry, None
    try:
        model = config_class(api, provider.value)
    except ConfigError as error:
        problems.add(provider.place, (*path, "provider"), str(error))
        return entry, None
    own = {key: node for key, node in entries(entry).items() if key != "provider"}
    config, checked = _validated(model, replace(entry, value=own), path, problems)
    entry = replace(entry, value={"provider": provider} | dict(entries(checked)))
    return entry, _models(config, entry, path, problems)


def _models(config: BaseModel | None, entry: Node, path: Path, problems: Problems) -> list[str] | None:
    """The ids of the models that an entry lists; a reference that leads nowhere is a mistake of its own."""
    if config is None or not isinstance(getattr(config, "models", None), list):
        return None
    found: list[str | None] = []
    for key in LISTS:
        for index, model in enumerate(getattr(config, key, [])):
            try:
                found.append(_id(config, model))
            except StackError as error:
                found.append(None)
                problems.add(entry.at((key, index)).place, (*path, key, index), str(error))
    known = [model for model in found if model is not None]
    return known if len(known) == len(found) else None


def _id(config: BaseModel, model: str | ModelCard) -> str:
    one = config.model_copy(update={"models": [model]})
    if isinstance(one, KnowsCards):
        model = one.cards()[0]
    return model if isinstance(model, str) else model.id


def _defaults(tree: Node, served: Served, problems: Problems) -> None:
    """Check that each default names a provider of its section, or a model which some provider serves."""
    for key, node in entries(tree.child("defaults")).items():
        if key not in Defaults.model_fields or not isinstance(node.value, str):
            continue
        if key in KEPT:
            known = entries(tree.child(key))
            there = f"there is no `{node.value}` under `{key}`{_known(node.value, known)}"
            what = None if node.value in known else there
        else:
            what = _astray(node.value, served)
        if what:
            problems.add(node.place, ("defaults", key), what)


def _kept(tree: Node, problems: Problems) -> None:
    """Check that there is a database for what is kept in one."""
    for key in KEPT:
        section = tree.child(key)
        if section and entries(section) and tree.child("storage") is None:
            what = f"`{key}` needs `storage`, such as `storage: sqlite`"
            problems.add(section.key or section.place, (key,), what)


def _enforced(enforce: Mapping[str, Node], shields: list[str], problems: Problems) -> None:
    """Check that each touchpoint names shields which there are."""
    for key in TOUCHPOINTS:
        node = enforce.get(key)
        names = node.value if node and isinstance(node.value, list) else []
        for index, name in enumerate(names):
            if isinstance(name.value, str) and name.value not in shields:
                what = f"there is no shield `{name.value}` under `safety`{_known(name.value, shields)}"
                problems.add(name.place, ("enforce", key, index), what)


def _astray(name: str, served: Served) -> str | None:
    """What is wrong with `provider/model`, or with a bare `model`."""
    provider, slash, model = name.partition("/")
    holders = [f"{holder}/{name}" for holder, ids in served.items() if name in (ids or [])]
    if slash and provider in served:
        ids = served[provider]
        if ids is None or model in ids:
            return None
        return f"provider `{provider}` serves no model `{model}`{_known(model, ids)}"
    if len(holders) > 1:
        return f"`{name}` is served by several providers: say {' or '.join(holders)}"
    if holders or (not slash and None in served.values()):
        return None
    if slash:
        return f"there is no inference provider `{provider}`{_known(provider, served)}"
    every = [f"{holder}/{model}" for holder, ids in served.items() for model in ids or []]
    return f"no provider serves a model `{name}`{_known(name, every)}"


def _known(name: str, known: Iterable[str]) -> str:
    known = list(known)
    return did_you_mean(name, known) or f"; there is {', '.join(known[:10]) or 'none'}"


def _validated(model: type[M], node: Node, path: Path, problems: Problems) -> tuple[M | None, Node]:
    """Validate a node: the model, and the node with those scalars as text that the model wants as text."""
    try:
        return model.model_validate(node.data()), node
    except StackError as error:
        problems.add(node.key or node.place, path, str(error))
        return None, node
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False)
    retyped = node
    for wrong in found:
        retyped = _as_text(retyped, _real(retyped, wrong["loc"]))
    if retyped is not node:
        return _validated(model, retyped, path, problems)
    keys = {
        _path(node, wrong) for wrong in found if wrong["type"] in OF_KEYS or wrong["loc"][-1:] == ("[key]",)
    }
    for at, what in _grouped(model, node, found):
        where = node.at(at)
        problems.add((where.key if at in keys else None) or where.place, (*path, *at), what)
    return None, node


def _as_text(node: Node, path: Path) -> Node:
    """The tree with the text of a guessed scalar in the place of its guess: a key may be all digits."""
    if not path:
        return node if node.text is None or node.value is None else replace(node, value=node.text, text=None)
    child = node.child(path[0])
    if child is None or (changed := _as_text(child, path[1:])) is child:
        return node
    if isinstance(node.value, dict):
        return replace(node, value=node.value | {str(path[0]): changed})
    assert isinstance(node.value, list)
    items = [changed if index == path[0] else item for index, item in enumerate(node.value)]
    return replace(node, value=items)


def _real(node: Node, location: Path) -> Path:
    """A location without pydantic's names of union members and such, which are no keys."""
    path: list[str | int] = []
    for step in location:
        if (child := node.child(step)) is not None:
            node = child
            path.append(step)
    return tuple(path)


def _path(node: Node, error: ErrorDetails) -> Path:
    path = _real(node, error["loc"])
    return (*path, error["loc"][-1]) if error["type"] == "missing" else path


def _grouped(model: type[BaseModel], node: Node, found: list[ErrorDetails]) -> Iterator[tuple[Path, str]]:
    """One message for each path: each member of a union has its say, and the deepest knows best."""
    messages: dict[Path, list[str]] = {}
    for error in found:
        path = _path(node, error)
        said = messages.setdefault(path, [])
        if (what := _said(model, path, error)) not in said:
            said.append(what)
    for path, said in messages.items():
        if not any(path == other[: len(path)] for other in messages if len(other) > len(path)):
            first, *others = said
            yield path, " or ".join([first, *(other.removeprefix("must be ") for other in others)])


def _said(model: type[BaseModel], path: Path, error: ErrorDetails) -> str:
    if error["type"] != "extra_forbidden":
        return words(error)
    kinds: set[Any] = {model}
    for step in path[:-1]:
        kinds = below(kinds, step)
    known = [name for kind in models(kinds) for name in names(kind)]
    close = did_you_mean(str(path[-1]), known)
    return f"unknown key{close}" if close or not known else f"unknown key; known: {', '.join(known)}"

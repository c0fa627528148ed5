"""The check of the agents of a file: what they name is there, and none is its own tool."""

from collections.abc import Callable, Collection, Mapping

from llama_stack_lite.api.agents import NESTING, too_deep
from llama_stack_lite.errors import did_you_mean

from .tree import Node, Path, Problems, entries

Names = Collection[str]
NO_INDEX = "an index of vectors, such as `vector_io: {faiss: {provider: faiss}}`"


def check_agents(tree: Node, *, astray: Callable[[str], str | None], problems: Problems) -> None:
    """Add the mistakes of `agents` and of `mcp`; `astray` says what is wrong with a model's name."""
    agents, tools = entries(tree.child("agents")), entries(tree.child("tools"))
    shields = entries(tree.child("safety"))
    for name, agent in agents.items():
        path: Path = ("agents", name)
        if name in tools and agent.key:
            problems.add(agent.key, path, f"`tools` has a `{name}` too; give one of them another name")
        model = agent.child("model")
        if model and isinstance(model.value, str) and (what := astray(model.value)):
            problems.add(model.place, (*path, "model"), what)
        _named(agent, (*path, "guardrails"), "shield", shields, problems)
        _named(agent, (*path, "tools"), "tool or agent", {**tools, **agents}, problems)
        _searches(tree, agent, path, problems)
    _chains(agents, problems)
    if agents and tree.child("storage") is None:
        place = next(iter(agents.values()))
        problems.add(
            place.key or place.place, ("agents",), "agents need `storage`, such as `storage: sqlite`"
        )
    if mcp := tree.child("mcp"):
        _named(mcp, ("mcp", "tools"), "tool", tools, problems)
        if not _found(tree) and (served := _items(mcp.child("vector_stores"))):
            problems.add(served[0].place, ("mcp", "vector_stores", 0), f"searches need {NO_INDEX}")


def _found(tree: Node) -> bool:
    """Whether there can be vector stores."""
    return bool(entries(tree.child("vector_io")))


def _searches(tree: Node, agent: Node, path: Path, problems: Problems) -> None:
    """A search of documents needs an index; the stores may be made later."""
    for index, tool in enumerate(_items(agent.child("tools"))):
        kind = tool.child("type")
        if kind and kind.value == "file_search" and not _found(tree):
            problems.add(tool.place, (*path, "tools", index), f"`file_search` needs {NO_INDEX}")


def _named(node: Node, path: Path, what: str, known: Mapping[str, Node], problems: Problems) -> None:
    """Each name in the list at the end of a path must be known."""
    for index, name in enumerate(_items(node.child(path[-1]))):
        if isinstance(name.value, str) and name.value not in known:
            close = did_you_mean(name.value, known) or f"; there is {', '.join([*known][:10]) or 'none'}"
            problems.add(name.place, (*path, index), f"there is no {what} `{name.value}`{close}")


def _items(node: Node | None) -> list[Node]:
    return node.value if node and isinstance(node.value, list) else []


def _chains(agents: Mapping[str, Node], problems: Problems) -> None:
    """An agent may be the tool of another, but not of itself, and not in too long a row."""
    calls = {name: [_called(tool) for tool in _items(agent.child("tools"))] for name, agent in agents.items()}
    for name, agent in agents.items():
        if chain := too_deep(name, calls):
            where = _items(agent.child("tools"))[calls[name].index(chain[1])]
            row = " > ".join(chain)
            short = len(set(chain)) == len(chain)
            what = f"more than {NESTING} agents in a row" if short else "an agent cannot be its own tool"
            problems.add(where.place, ("agents", name, "tools"), f"{what}: {row}")


def _called(tool: Node) -> str:
    """The name of the agent that a tool may be."""
    if kind := tool.child("type"):
        name = tool.child("name")
        return str(name.value) if name and kind.value == "agent" else ""
    return str(tool.value)

"""The shape of the code base, checked like any other behaviour."""

import ast
import asyncio
import re
import sys
import threading
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import entry_points
from pathlib import Path
from types import FrameType
from typing import Any

import httpx
import pytest

from llama_stack_lite.config import StackConfig
from llama_stack_lite.server import create_app

ROOT = Path(__file__).parent.parent
SOURCES = [
    path for folder in ("llama_stack_lite", "providers") for path in sorted((ROOT / folder).rglob("*.py"))
]
FUNCTIONS = ast.FunctionDef | ast.AsyncFunctionDef


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path: Path) -> set[str]:
    """Every module that a file imports, relative ones made absolute."""
    package = path.relative_to(ROOT).parent.parts
    names: set[str] = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            names |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_stay_small(path: Path) -> None:
    assert path.read_text(encoding="utf-8").count("\n") <= 400
    for node in ast.walk(tree(path)):
        if isinstance(node, FUNCTIONS):
            assert (node.end_lineno or 0) - node.lineno < 50, node.name


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_module_says_what_it_is(path: Path) -> None:
    assert ast.get_docstring(tree(path))


def test_the_core_never_imports_a_provider() -> None:
    for path in (ROOT / "llama_stack_lite").rglob("*.py"):
        assert not any("providers" in name.split(".") for name in imports(path)), path


def test_contracts_import_nothing_but_types() -> None:
    allowed = {"pydantic", "pydantic_core", "typing_extensions", *sys.stdlib_module_names}
    for path in (ROOT / "llama_stack_lite" / "api").rglob("*.py"):
        for name in imports(path):
            assert name.split(".")[0] in allowed or name.startswith("llama_stack_lite.api"), (path, name)


def test_imports_make_no_cycle() -> None:
    modules = {path: ".".join(path.relative_to(ROOT).with_suffix("").parts) for path in SOURCES}
    modules = {path: name.removesuffix(".__init__") for path, name in modules.items()}
    known = set(modules.values())
    graph = {name: {n for n in imports(path) if n in known and n != name} for path, name in modules.items()}
    # a package's own __init__ may gather its modules; only what they import of each other counts
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join([*trail[trail.index(name) :], name])
        if name not in done:
            for other in graph[name]:
                visit(other, (*trail, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_every_provider_file_has_its_entry_and_every_entry_its_file() -> None:
    files = {
        (path.parent.name, path.stem.replace("_", "-"))
        for path in [*(ROOT / "providers").glob("*/*.py"), *(ROOT / "providers").glob("*/*/")]
        if path.stem not in ("__init__", "__pycache__")
    }
    entries = {
        (group.removeprefix("llama_stack_lite."), point.name)
        for group in entry_points().groups
        if group.startswith("llama_stack_lite.")
        for point in entry_points(group=group)
        if point.module.startswith("llama_stack_lite.providers")
    }
    assert files == entries


def test_every_package_is_shipped() -> None:
    setup = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    moved = {folder: package for package, folder in setup["package-dir"].items()}
    folders = ("llama_stack_lite", "providers", "distributions", "templates", "tests/conformance")
    found = set()
    for folder in folders:
        for init in (ROOT / folder).rglob("__init__.py"):
            inside = init.parent.relative_to(ROOT / folder).parts
            found.add(".".join([moved.get(folder, folder), *inside]))
    assert set(setup["packages"]) == found


WRITING = ("chat", "complete")  # the calls of a provider by which a model writes
DOORS = {"enforcement.answered", "enforcement.chat", "enforcement.complete"}
ASKING = {"ChatRequest", "CompletionRequest", "MessagesRequest"}  # what a route takes that asks for that


def asks(module: ast.Module) -> Iterator[int]:
    """The lines where a module takes hold of a model's calls on anything but the door, by dot or by name."""
    for node in ast.walk(module):
        if isinstance(node, ast.Attribute) and node.attr in WRITING:
            if not (isinstance(node.value, ast.Name) and node.value.id == "enforcement"):
                yield node.lineno
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in (
            "getattr",
            "attrgetter",
            "methodcaller",
        ):
            names = [argument.value for argument in node.args if isinstance(argument, ast.Constant)]
            if set(names) & set(WRITING):
                yield node.lineno


def is_model_or_shield(path: Path) -> bool:
    """A shield may be a model, and a model may be made of others: both stand behind the door."""
    return path.relative_to(ROOT).parts[:2] in (("providers", "inference"), ("providers", "safety"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_only_the_door_asks_a_model_to_write(path: Path) -> None:
    """And shields, whose questions nobody judges; no other module, of the core or of a provider."""
    if path != ROOT / "llama_stack_lite" / "enforcement.py" and not is_model_or_shield(path):
        assert list(asks(tree(path))) == []


@pytest.mark.parametrize(
    "source",
    [
        "chunks = model.provider.chat(model.name, request)",
        "async with aclosing(stack.inference['a'].complete(name, request)) as chunks: ...",
        "call = provider.chat",
        "call = getattr(provider, 'complete', None)",
        "call = operator.methodcaller('chat', name, request)",
        "self.enforcement.chat(stack, request)",
    ],
)
def test_a_module_that_did_ask_would_be_found(source: str) -> None:
    assert list(asks(ast.parse(source))) == [1]
    assert not list(asks(ast.parse("chunks = enforcement.chat(stack, request)")))


def test_every_route_that_writes_goes_through_the_door() -> None:
    """The handlers that take a request for a model, and those that call the door, are the same."""
    taking, calling = set(), set()
    for path in (ROOT / "llama_stack_lite" / "routes").glob("*.py"):
        for node in ast.walk(tree(path)):
            if isinstance(node, FUNCTIONS):
                kinds = {ast.unparse(each.annotation) for each in node.args.args if each.annotation}
                taking |= {node.name} if kinds & ASKING else set()
                calling |= {node.name} if {ast.unparse(each) for each in ast.walk(node)} & DOORS else set()
    assert taking == calling == {"chat_completions", "completions", "create_message"}


def test_the_door_does_ask() -> None:
    asked = {
        node.attr
        for node in ast.walk(tree(ROOT / "llama_stack_lite" / "enforcement.py"))
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "model.provider"
    }
    assert asked == {"chat", "complete"}


@contextmanager
def crossed() -> Iterator[set[str]]:
    """The project's files whose functions run meanwhile, in any thread; a folder of a provider counts as one.

    `api/` does not count: contracts are types, and types that check themselves are no hop.
    """
    found: set[str] = set()

    def tracer(frame: FrameType, event: str, argument: object) -> None:
        path = Path(frame.f_code.co_filename)
        if event == "call" and path.is_relative_to(ROOT) and frame.f_code.co_name != "<module>":
            parts = path.relative_to(ROOT).parts
            if parts[0] == "providers":
                found.add("/".join(parts[:3]).removesuffix(".py"))
            elif parts[0] == "llama_stack_lite" and parts[1] != "api":
                found.add("/".join(parts))

    sys.setprofile(tracer)
    threading.setprofile(tracer)
    try:
        yield found
    finally:
        sys.setprofile(None)
        threading.setprofile(None)


async def ask(path: str, bodies: list[dict[str, object]], config: StackConfig) -> set[str]:
    """The files that each request crosses but the first, which builds what later ones reuse.

    What looks around now and then beside them is in one of them at most.
    """
    app = create_app(config)
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://test") as http,
    ):
        first, *others = bodies
        await http.post(path, json=first)
        seen = []
        for body in others:
            with crossed() as found:
                reply = await http.post(path, json=body)
            assert reply.status_code == 200, reply.text
            seen.append(found)
    return set.intersection(*seen)


TEXTS = ("?", "what?", "who?", "when?")  # a guard remembers what it let pass
SCRIPTED: dict[str, Any] = {
    "inference": {"test": {"provider": "scripted", "replies": ["one two"], "loop": True}}
}
GUARDED: dict[str, Any] = SCRIPTED | {
    "safety": {"bird": {"provider": "canary"}},
    "enforce": {"input": ["bird"], "output": ["bird"]},
}
HOPS = {
    "llama_stack_lite/routes/inference.py",
    "llama_stack_lite/stack.py",
    "llama_stack_lite/enforcement.py",
    "llama_stack_lite/answer.py",
    "providers/inference/scripted",
}
GUARDED_HOPS = {
    "llama_stack_lite/config/sections.py",  # which shields a touchpoint has
    "llama_stack_lite/safety/texts.py",
    "llama_stack_lite/safety/normal.py",
    "llama_stack_lite/safety/lookalikes.py",
    "llama_stack_lite/safety/readings.py",  # the canary's: the ways in which a text can be read
    "llama_stack_lite/safety/judge.py",
    "llama_stack_lite/safety/holding.py",
    "llama_stack_lite/safety/speech.py",
    "providers/safety/canary",
}


MESSAGE_HOPS = HOPS - {"llama_stack_lite/routes/inference.py"} | {
    "llama_stack_lite/routes/messages.py",
    "llama_stack_lite/anthropic/requests.py",
    "llama_stack_lite/anthropic/replies.py",
    "llama_stack_lite/anthropic/errors.py",  # the id of the request
}


def chat_files(
    config: dict[str, Any], stream: bool, path: str = "/v1/chat/completions", **fields: object
) -> set[str]:
    bodies: list[dict[str, object]] = [
        {
            "model": "test/scripted",
            "messages": [{"role": "user", "content": text}],
            "stream": stream,
            **fields,
        }
        for text in TEXTS
    ]
    return asyncio.run(ask(path, bodies, StackConfig.model_validate(config)))


@pytest.mark.parametrize("stream", [False, True])
def test_a_chat_crosses_five_files(stream: bool) -> None:
    assert chat_files(SCRIPTED, stream) == HOPS


@pytest.mark.parametrize("stream", [False, True])
def test_a_message_crosses_three_files_more(stream: bool) -> None:
    assert chat_files(SCRIPTED, stream, "/v1/messages", max_tokens=9) == MESSAGE_HOPS


@pytest.mark.parametrize("stream", [False, True])
def test_a_guarded_chat_crosses_these_more(stream: bool) -> None:
    assert chat_files(GUARDED, stream) - HOPS == GUARDED_HOPS


TURN_HOPS = HOPS - {"llama_stack_lite/routes/inference.py"} | {
    "llama_stack_lite/routes/responses.py",
    "llama_stack_lite/agent/turn.py",
    "llama_stack_lite/state/journal.py",
    "llama_stack_lite/state/store.py",
}


@pytest.mark.parametrize("stream", [False, True])
def test_a_turn_crosses_eight_files(stream: bool, tmp_path: Path) -> None:
    config = StackConfig.model_validate({**SCRIPTED, "storage": f"sqlite:///{tmp_path}/state.db"})
    bodies: list[dict[str, object]] = [
        {"model": "test/scripted", "input": text, "stream": stream} for text in TEXTS
    ]
    found = asyncio.run(ask("/v1/responses", bodies, config))
    assert found == TURN_HOPS and len(found) <= 8


SEARCH_HOPS = {
    "llama_stack_lite/routes/vector_stores.py",
    "llama_stack_lite/rag/search.py",
    "llama_stack_lite/stack.py",
    "llama_stack_lite/state/store.py",
    "providers/inference/scripted",
    "providers/vector_io/faiss",
}


def test_a_search_crosses_six_files(tmp_path: Path) -> None:
    config = StackConfig.model_validate(
        {
            "inference": {"test": {"provider": "scripted", "embedding_models": ["embedder"]}},
            "vector_io": {"index": {"provider": "faiss", "folder": str(tmp_path / "vectors")}},
            "defaults": {"embedding_model": "test/embedder"},
            "storage": f"sqlite:///{tmp_path}/state.db",
        }
    )
    assert asyncio.run(searched(config)) == SEARCH_HOPS


async def searched(config: StackConfig) -> set[str]:
    """The files that a search by vectors and words crosses."""
    app = create_app(config)
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://test") as http,
    ):
        await app.state.stack.ingestion.aclose()  # or what they do all the time would be seen too
        await app.state.stack.agents.aclose()
        store = (await http.post("/v1/vector_stores", json={"name": "birds"})).json()["id"]
        chunks = [{"content": "Owls hunt at night."}, {"content": "Storks nest on roofs."}]
        await http.post("/v1/vector-io/insert", json={"vector_store_id": store, "chunks": chunks})
        path, asked = f"/v1/vector_stores/{store}/search", {"query": "when do owls hunt?"}
        await http.post(path, json=asked)
        with crossed() as found:
            reply = await http.post(path, json=asked)
        assert len(reply.json()["data"]) == 2, reply.text
    return found


def test_every_file_that_the_architecture_page_names_exists() -> None:
    page = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    named = re.findall(
        r"`((?:llama_stack_lite|providers|distributions|templates|tests|docs|benchmarks)/[\w./-]*)`", page
    )
    assert len(named) > 10
    for name in named:
        assert (ROOT / name).exists(), name

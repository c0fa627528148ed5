"""`file_search`: vector stores as a tool of one turn, and as the tools of /mcp."""

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row

from llama_stack_lite.agent.turn import Turn
from llama_stack_lite.api.inference import ChatRequest, FunctionDefinition, Message
from llama_stack_lite.api.responses import FileSearchItem, FileSearchTool, Item
from llama_stack_lite.api.tools import ToolKind, ToolResult
from llama_stack_lite.api.vector_stores import Search, SearchHit
from llama_stack_lite.errors import InvalidRequest, NotFound, StackError
from llama_stack_lite.stack import Model, Stack
from llama_stack_lite.state import vector_stores

from .citing import citations, numbers, passages
from .search import search

log = logging.getLogger(__name__)

UNKNOWN = 4000  # tokens for what is found, where nobody knows how many the model can read
CITE = " Cite each passage that you use by its number, such as [1]."
CUT = "\n(The passage goes on; the rest did not fit.)"
ENDS = re.compile(r"[.!?。！？](?=\s|$)|\n|$")
QUERY: dict[str, Any] = {"type": "string", "minLength": 1, "description": "what to look for"}
Result = dict[str, Any]
Count = Callable[[str], Awaitable[int]]


@dataclass(frozen=True, slots=True)
class Asked:
    """A tool of the request, with the stores that it names."""

    tool: FileSearchTool
    stores: list[Row[Any]]


class FileSearch:
    """The provider of a turn's searches, which share the model's context and the numbers of passages."""

    kind: ToolKind = "file_search"

    def __init__(self, turn: Turn, asked: Mapping[str, FileSearchTool]) -> None:
        """`asked` are the tools by their places in the request, such as `tools[0]`."""
        self.turn = turn
        self.stack = turn.stack
        self._tools = asked
        self._asked: dict[str, Asked] = {}
        self._told: list[Result] = []  # the passages of this turn's calls
        self._telling = asyncio.Lock()
        turn.cite = self.cited

    async def tools(self) -> list[FunctionDefinition]:
        """One function for each tool; raises `NotFound` naming the store that there is not."""
        model = self._model()
        found = []
        for number, (param, tool) in enumerate(self._tools.items(), 1):
            name = "file_search" if number == 1 else f"file_search_{number}"
            stores = [
                await _store(self.stack, each, param=f"{param}.vector_store_ids[{place}]")
                for place, each in enumerate(tool.vector_store_ids)
            ]
            self._asked[name] = Asked(tool, stores)
            # a model that was trained on no format of calls is not told, as it would not understand
            cite = "" if model.card.tool_calling == "assisted" else CITE
            found.append(_definition(name, stores, {"query": QUERY}, cite=cite))
        return found

    async def call(self, name: str, arguments: dict[str, Any], *, session: str) -> ToolResult:
        """What is found, as far as the model can read it."""
        asked, guardrails = self._asked[name], self.turn.request.guardrails
        ids = [store.id for store in asked.stores]
        page = await search(self.stack, ids, [arguments["query"]], asked.tool.search(guardrails))
        async with self._telling:
            results = await self._fitted(page.data, asked.tool.max_tokens)
            self._told += results
        return ToolResult(
            text=_text(results),
            details={"queries": page.search_query, "results": results},
            judged=await _judged(self.stack, guardrails),
        )

    def cited(self, text: str) -> list[dict[str, Any]]:
        """The citations of what the model says, unless it says it in JSON."""
        turn = self.turn
        if turn.request.text.format.type != "text":
            return []
        items = [*turn.before[turn.dropped :], *turn.response.output]  # those that the model has read
        pages = [len(item.results or []) for item in items if item.type == "web_search_call"]
        return citations(text, passages(items), unclear=max(pages, default=0))

    def _model(self) -> Model:
        turn = self.turn
        return self.stack.model(turn.agent and turn.agent.model or turn.response.model, "chat")

    async def _fitted(self, hits: list[SearchHit], most: int | None) -> list[Result]:
        """The passages that the model gets to read, each under a number that no other one has."""
        model, items = self._model(), [*self.turn.before, *self.turn.response.output]
        first = 1 + max([*numbers(items), *(each["number"] for each in self._told)], default=0)
        results = [_result(number, hit) for number, hit in enumerate(hits, first)]
        if "rag_chunks" in model.card.model_fields_set:
            results = results[: model.card.rag_chunks]
        return await fitted(results, await self._room(model, items, most), _counter(model))

    async def _room(self, model: Model, items: list[Item], most: int | None) -> int:
        """How many tokens the passages may have: half of what the conversation leaves, and `most`."""
        if model.card.context_length is None:
            return most or UNKNOWN
        count, messages = _counter(model), self.turn.messages()
        if hasattr(model.provider, "count"):
            offer = self.turn.tools.offer if self.turn.tools else {}
            request = ChatRequest(model=model.id, messages=messages, **offer)
            used: int = await model.provider.count(model.name, request)
        else:
            used = await count("\n".join(message.text() for message in messages))
        seen = {number for item in items if isinstance(item, FileSearchItem) for number, _ in item.numbered()}
        if pending := [each for each in self._told if each["number"] not in seen]:
            used += await count(_text(pending))  # of calls that were made beside this one
        half = max(0, model.card.context_length - used) // 2
        return half if most is None else min(most, half)


class StoreSearch:
    """The provider of `search_<name>` for each vector store that the operator serves at /mcp."""

    kind: ToolKind = "file_search"

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self._names = {_function(name): name for name in stack.config.mcp.vector_stores}

    async def tools(self) -> list[FunctionDefinition]:
        """One function for each store that is there."""
        limit = {"type": "integer", "minimum": 1, "maximum": 50, "description": "passages at most"}
        found = []
        for name, store in self._names.items():
            try:
                row = await _store(self.stack, store, param="mcp.vector_stores")
            except StackError as error:
                log.warning("/mcp: vector store %s is not there: %s", store, error)
                continue
            found.append(_definition(name, [row], {"query": QUERY, "max_num_results": limit}))
        return found

    async def call(self, name: str, arguments: dict[str, Any], *, session: str) -> ToolResult:
        row = await _store(self.stack, self._names[name], param="mcp.vector_stores")
        most = arguments.get("max_num_results", Search().max_num_results)
        page = await search(self.stack, [row.id], [arguments["query"]], Search(max_num_results=most))
        results = [_result(number, hit) for number, hit in enumerate(page.data, 1)]
        results = await fitted(results, UNKNOWN, _estimated)
        return ToolResult(text=_text(results), judged=await _judged(self.stack, []))


async def fitted(results: list[Result], budget: int, count: Count) -> list[Result]:
    """The first passages, as many as have `budget` tokens together; if none does, what fits of the first."""
    fits, more = 0, len(results)
    while fits < more:
        middle = (fits + more + 1) // 2
        if await count(_text(results[:middle])) <= budget:
            fits = middle
        else:
            more = middle - 1
    if fits or not results:
        return results[:fits]
    return [await _cut(results[0], budget, count)]


async def _cut(result: Result, budget: int, count: Count) -> Result:
    """A passage up to the last sentence that fits, or else the last word; it says that it is cut."""
    text = result["text"]
    for ends in (
        [match.end() for match in ENDS.finditer(text)],
        [m.end() for m in re.finditer(r"\S+", text)],
    ):
        fits, more = 0, len(ends)
        while fits < more:
            middle = (fits + more + 1) // 2
            if await count(_text([{**result, "text": text[: ends[middle - 1]] + CUT}])) <= budget:
                fits = middle
            else:
                more = middle - 1
        if fits:
            return {**result, "text": text[: ends[fits - 1]].rstrip() + CUT}
    return {**result, "text": CUT.strip()}


def _counter(model: Model) -> Count:
    """How many tokens a text has, by the model where it can say."""
    if not hasattr(model.provider, "count"):
        return _estimated

    async def counted(text: str) -> int:
        request = ChatRequest(model=model.id, messages=[Message(role="user", content=text)])
        found: int = await model.provider.count(model.name, request)
        return found

    return counted


async def _estimated(text: str) -> int:
    """A token has four bytes of English, and fewer of most else."""
    return len(text.encode()) // 3


def _result(number: int, hit: SearchHit) -> Result:
    """A hit as OpenAI's types have it, and four fields of our own."""
    page = {} if hit.page is None else {"page": hit.page}
    return {
        "number": number,
        "file_id": hit.file_id,
        "filename": hit.filename,
        "score": hit.score,
        "text": hit.text(),
        "attributes": hit.attributes,
        "chunk_id": hit.chunk_id,
        "headings": hit.headings,
        **page,
    }


def _text(results: list[Result]) -> str:
    return FileSearchItem(results=results).text()


async def _judged(stack: Stack, guardrails: list[str]) -> bool:
    """Whether those who judge what is found leave nothing to those who judge what tools say."""
    watch = await stack.judge.watch(guardrails)
    return set(watch.shields("tool_result")) <= set(watch.shields("retrieval"))


async def _store(stack: Stack, name: str, *, param: str) -> Row[Any]:
    """A store by its id or its name; the error of one that cannot be searched names `param`."""
    try:
        row = await vector_stores.resolve(stack.store, name)
    except (InvalidRequest, NotFound) as error:
        error.param = param
        raise
    if row.expired:
        raise InvalidRequest(f"vector store `{name}` has expired", param=param, code="expired")
    return row


def _definition(
    name: str, stores: list[Row[Any]], properties: dict[str, Any], *, cite: str = ""
) -> FunctionDefinition:
    """The function that searches stores; by their names and descriptions a model knows when to call it."""
    about = [
        f"{row.name} ({row.description})" if row.name and row.description else row.name or row.description
        for row in stores
    ]
    where = ", ".join(each for each in about if each)
    parameters = {
        "type": "object",
        "properties": properties,
        "required": ["query"],
        "additionalProperties": False,
    }
    what = f"Search the documents{f': {where}' if where else ''}."
    return FunctionDefinition(
        name=name,
        description=f"{what} Finds the passages that say most about a query.{cite}",
        parameters=parameters,
    )


def _function(store: str) -> str:
    """A name that functions may have, of a store's."""
    return "search_" + re.sub(r"[^A-Za-z0-9_-]+", "_", store)[:57]

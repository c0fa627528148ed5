"""/v1/conversations: OpenAI's own package talks to it, and its types validate what it answers."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import BadRequestError, NotFoundError, OpenAI
from openai.types.conversations import Conversation, ConversationDeletedResource, ConversationItemList
from pydantic import TypeAdapter
from sqlalchemy import select

from llama_stack_lite.api.responses import Item
from llama_stack_lite.config import StackConfig
from llama_stack_lite.errors import InvalidRequest, NotFound
from llama_stack_lite.state import conversations
from llama_stack_lite.state.conversations import prepared
from llama_stack_lite.state.store import Store
from llama_stack_lite.state.tables import conversation_items
from tests.support.databases import KINDS, database
from tests.support.serving import serve

ITEMS: TypeAdapter[list[Item]] = TypeAdapter(list[Item])
CALL = {"type": "function_call", "call_id": "c1", "name": "add", "arguments": "{}"}
EVERY_KIND: list[dict[str, Any]] = [
    {"role": "user", "content": "hello"},
    {"role": "assistant", "content": "hi"},
    {"role": "developer", "content": [{"type": "input_text", "text": "be brief"}]},
    {"role": "user", "content": [{"type": "input_image", "image_url": "data:image/png;base64,AA=="}]},
    CALL,
    {"type": "function_call_output", "call_id": "c1", "output": "3"},
    {"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}], "encrypted_content": "zz"},
    {"type": "mcp_list_tools", "server_label": "s", "tools": [{"name": "t", "input_schema": {}}]},
    {"type": "mcp_call", "server_label": "s", "name": "t", "arguments": "{}", "output": "1"},
    {"type": "mcp_approval_request", "server_label": "s", "name": "t", "arguments": "{}"},
    {"type": "mcp_approval_response", "approval_request_id": "mcpr_1", "approve": True},
    {
        "type": "web_search_call",
        "action": {"type": "search", "query": "q", "sources": [{"type": "url", "url": "http://x"}]},
    },
    {"type": "file_search_call", "queries": ["q"], "results": [{"file_id": "f", "text": "t"}]},
    {
        "type": "code_interpreter_call",
        "container_id": "c",
        "code": "1",
        "outputs": [{"type": "logs", "logs": "1"}],
    },
]


@pytest.fixture(scope="module", params=KINDS)
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of a server that keeps its state in either kind of database, with `/v1`."""
    with database(request.param, tmp_path_factory.mktemp("state")) as storage:
        inference = {"test": {"provider": "scripted"}}
        with serve(StackConfig.model_validate({"storage": storage, "inference": inference})) as running:
            yield f"{running.url}/v1"


@pytest.fixture
def client(url: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=url, api_key="none", max_retries=0) as client:
        yield client


def new(url: str, **body: Any) -> str:
    reply = httpx.post(f"{url}/conversations", json=body)
    assert reply.status_code == 200, reply.text
    return str(reply.json()["id"])


def said(*texts: str) -> list[Any]:
    return [{"role": "user", "content": text} for text in texts]


def texts(items: Any) -> list[str]:
    return [item.content[0].text for item in items]


# ---------------------------------------------------------------- the SDK


def test_openai_s_package_makes_reads_changes_and_deletes_a_conversation(client: OpenAI) -> None:
    made = client.conversations.create(items=said("hello"), metadata={"user": "me"})
    assert made.id.startswith("conv_")
    assert client.conversations.retrieve(made.id) == made
    changed = client.conversations.update(made.id, metadata={"topic": "x"})
    assert changed.metadata == {"topic": "x"}
    assert changed.created_at == made.created_at
    assert client.conversations.retrieve(made.id) == changed
    deleted = client.conversations.delete(made.id)
    assert (deleted.id, deleted.deleted) == (made.id, True)
    for call in (client.conversations.retrieve, client.conversations.delete, client.conversations.items.list):
        with pytest.raises(NotFoundError):
            call(made.id)


def test_openai_s_package_reads_page_after_page(client: OpenAI) -> None:
    conversation = client.conversations.create().id
    for start in range(0, 60, 20):
        client.conversations.items.create(
            conversation, items=said(*(str(number) for number in range(start, start + 20)))
        )
    every = [str(number) for number in range(60)]
    assert texts(client.conversations.items.list(conversation, limit=7, order="asc")) == every
    assert texts(client.conversations.items.list(conversation)) == every[::-1]
    first = client.conversations.items.list(conversation, limit=60)
    assert not first.has_next_page()


def test_openai_s_package_reads_and_deletes_an_item(client: OpenAI) -> None:
    conversation = client.conversations.create(items=said("one", "two", "three"), metadata={"a": "b"})
    items = list(client.conversations.items.list(conversation.id, order="asc"))
    found = client.conversations.items.retrieve(items[1].id or "", conversation_id=conversation.id)
    assert found == items[1]
    left = client.conversations.items.delete(items[1].id or "", conversation_id=conversation.id)
    assert left == conversation
    assert texts(client.conversations.items.list(conversation.id, order="asc")) == ["one", "three"]
    client.conversations.items.create(conversation.id, items=said("four"))
    page = client.conversations.items.list(conversation.id, after=items[0].id or "", order="asc")
    assert texts(page) == ["three", "four"]
    with pytest.raises(NotFoundError):
        client.conversations.items.retrieve(items[1].id or "", conversation_id=conversation.id)


def test_include_reaches_the_server_as_the_package_writes_it(client: OpenAI) -> None:
    conversation = client.conversations.create(items=[EVERY_KIND[6]])  # type: ignore[list-item]
    bare = next(iter(client.conversations.items.list(conversation.id)))
    full = next(
        iter(client.conversations.items.list(conversation.id, include=["reasoning.encrypted_content"]))
    )
    assert bare.type == full.type == "reasoning"
    assert (bare.encrypted_content, full.encrypted_content) == (None, "zz")
    one = client.conversations.items.retrieve(
        bare.id, conversation_id=conversation.id, include=["reasoning.encrypted_content"]
    )
    assert one == full


# ---------------------------------------------------------------- shapes


def test_official_types_validate_every_object_and_every_kind_of_item(url: str) -> None:
    reply = httpx.post(f"{url}/conversations", json={"items": EVERY_KIND})
    Conversation.model_validate(reply.json(), strict=True)
    path = f"{url}/conversations/{reply.json()['id']}"
    every = ["file_search_call.results", "code_interpreter_call.outputs", "web_search_call.action.sources"]
    for params in ({}, {"include": every}):
        listed = httpx.get(f"{path}/items", params={"order": "asc", **params}).json()
        ConversationItemList.model_validate(listed)
        assert [item["type"] for item in listed["data"]] == [
            each.get("type", "message") for each in EVERY_KIND
        ]
        shown = {item["type"]: item for item in listed["data"]}
        assert ("results" in shown["file_search_call"]) == bool(params)
        assert ("outputs" in shown["code_interpreter_call"]) == bool(params)
        assert ("sources" in shown["web_search_call"]["action"]) == bool(params)
    ids = [item["id"] for item in listed["data"]]
    assert len({*ids}) == len(ids)
    assert (listed["first_id"], listed["last_id"], listed["has_more"]) == (ids[0], ids[-1], False)
    added = httpx.post(f"{path}/items", json={"items": said("more")}).json()
    ConversationItemList.model_validate(added)
    assert added["data"][0]["content"] == [{"type": "input_text", "text": "more"}]
    ConversationDeletedResource.model_validate(httpx.delete(path).json(), strict=True)


def test_a_conversation_may_be_empty(url: str) -> None:
    conversation = new(url)
    assert httpx.get(f"{url}/conversations/{conversation}").json()["metadata"] == {}
    listed = httpx.get(f"{url}/conversations/{conversation}/items").json()
    ConversationItemList.model_validate(listed)
    assert (listed["data"], listed["has_more"]) == ([], False)


def test_what_came_is_what_is_kept_whatever_stands_in_it(url: str) -> None:
    odd = 'nul \x00, quote " and \U0001f999'
    conversation = new(url, items=said(odd), metadata={"odd": odd})
    path = f"{url}/conversations/{conversation}"
    assert httpx.get(path).json()["metadata"] == {"odd": odd}
    assert httpx.get(f"{path}/items").json()["data"][0]["content"][0]["text"] == odd


# ---------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"metadata": {str(number): "x" for number in range(17)}}, "metadata"),
        ({"metadata": {"x" * 65: "x"}}, "metadata"),
        ({"metadata": {"x": "x" * 513}}, "metadata.x"),
        ({"metadata": {"x": 1}}, "metadata.x"),
        ({"items": said(*"x" * 21)}, "items"),
        ({"items": [{"type": "no_such_type"}]}, "items[0]"),
        ({"items": [{"content": "no role"}]}, "items[0]"),
        ({"items": [{"type": "function_call", "name": "x"}]}, "items[0].call_id"),
        ({"items": [{"type": "item_reference", "id": "msg_1"}]}, "items[0]"),
        ({"items": [{"role": "user", "content": "x", "id": "a b"}]}, "items[0]"),
        ({"items": [{"role": "user", "content": "x", "id": "a"}] * 2}, "items[1].id"),
        ({"itmes": []}, "itmes"),
    ],
)
def test_a_mistake_names_its_field_and_nothing_is_kept(url: str, body: dict[str, Any], param: str) -> None:
    reply = httpx.post(f"{url}/conversations", json=body)
    assert reply.status_code == 400, reply.text
    assert str(reply.json()["error"]["param"]).startswith(param)


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("limit=0", "limit"),
        ("limit=101", "limit"),
        ("limit=many", "limit"),
        ("order=up", "order"),
        ("after=msg_nothing", "after"),
        ("after=%00", "after"),
        ("include=everything", "include"),
        ("include[]=everything", "include"),
    ],
)
def test_bad_paging_names_its_field(url: str, query: str, param: str) -> None:
    reply = httpx.get(f"{url}/conversations/{new(url)}/items?{query}")
    assert reply.status_code == 400, reply.text
    assert reply.json()["error"]["param"] == param


@pytest.mark.parametrize("name", ["conv_none", "%00", "a%20b", "x" * 300, "%ff"])
def test_what_is_not_there_is_404_in_openai_s_shape(url: str, name: str) -> None:
    here = f"{url}/conversations/{new(url)}/items/{name}"
    there = f"{url}/conversations/{name}"
    item = {"items": said("x")}
    replies = [
        httpx.get(there),
        httpx.delete(there),
        httpx.post(there, json={"metadata": {}}),
        httpx.get(f"{there}/items"),
        httpx.post(f"{there}/items", json=item),
        httpx.get(f"{there}/items/msg_1"),
        httpx.get(here),
        httpx.delete(here),
    ]
    for reply in replies:
        assert reply.status_code == 404, reply.text
        assert set(reply.json()["error"]) == {"message", "type", "param", "code"}


def test_an_item_is_not_taken_twice(client: OpenAI) -> None:
    conversation = client.conversations.create(items=said("hello")).id
    item = next(iter(client.conversations.items.list(conversation)))
    again: Any = [{"role": "user", "content": "fresh"}, item.model_dump()]
    with pytest.raises(BadRequestError, match="already") as caught:
        client.conversations.items.create(conversation, items=again)
    assert caught.value.param == "items[1].id"
    assert len(list(client.conversations.items.list(conversation))) == 1


# ---------------------------------------------------------------- for the agents


def items_of(*texts: str) -> list[dict[str, Any]]:
    return prepared(ITEMS.validate_python(said(*texts)))


@pytest.mark.parametrize("kind", KINDS)
def test_many_who_add_at_once_all_find_a_place(kind: str, tmp_path: Path) -> None:
    async def scenario(url: str) -> None:
        stores = [await Store.open(url) for _ in range(2)]  # as two servers
        conversation = (await conversations.create(stores[0], items=items_of("first"), metadata={})).id

        async def add(number: int) -> None:
            items = items_of(f"{number} a", f"{number} b")
            if number % 2:
                await conversations.add(stores[0], conversation, items)
            else:
                await stores[1].write(
                    lambda connection: conversations.append(connection, conversation, items)
                )

        await asyncio.gather(*(add(number) for number in range(40)))
        found = [item["content"][0]["text"] for item in await conversations.items(stores[0], conversation)]
        assert found[0] == "first"
        assert len(found) == len({*found}) == 81
        # what came together stands together
        assert found[2::2] == [text.replace("a", "b") for text in found[1::2]]
        positions = await stores[0].read(
            lambda connection: connection.scalars(select(conversation_items.c.position)).all()
        )
        assert sorted(positions) == list(range(81))
        for store in stores:
            await store.aclose()

    with database(kind, tmp_path) as url:
        asyncio.run(scenario(url))


@pytest.mark.parametrize("kind", KINDS)
def test_items_are_added_in_the_transaction_of_the_caller(kind: str, tmp_path: Path) -> None:
    async def scenario(url: str) -> None:
        store = await Store.open(url)
        conversation = (await conversations.create(store, items=[], metadata={})).id
        with pytest.raises(NotFound):
            await conversations.items(store, "conv_none")
        with pytest.raises(NotFound):
            await conversations.add(store, "conv_none", items_of("x"))

        def fails(connection: Any) -> None:
            conversations.append(connection, conversation, items_of("lost"))
            raise InvalidRequest("no")

        with pytest.raises(InvalidRequest):
            await store.write(fails)
        assert await conversations.items(store, conversation) == []
        await store.aclose()

    with database(kind, tmp_path) as url:
        asyncio.run(scenario(url))

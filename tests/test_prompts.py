"""/v1/prompts: texts in versions, whose variables are checked when they are written and when filled in."""

import asyncio
import re
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from llama_stack_lite.api.prompts import PromptText
from llama_stack_lite.api.responses import InputImage, InputText
from llama_stack_lite.config import StackConfig
from llama_stack_lite.errors import InvalidRequest, NotFound
from llama_stack_lite.state import prompts
from llama_stack_lite.state.store import Store
from tests.support.databases import KINDS, database
from tests.support.serving import serve

GREETING = {"prompt": "Greet {{name}} in {{ language }}.", "variables": ["name", "language"]}


@pytest.fixture(scope="module", params=KINDS)
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the prompts, of a server that keeps its state in either kind of database."""
    with database(request.param, tmp_path_factory.mktemp("state")) as storage:
        inference = {"test": {"provider": "scripted"}}
        with serve(StackConfig.model_validate({"storage": storage, "inference": inference})) as running:
            yield f"{running.url}/v1/prompts"


def made(url: str, **body: Any) -> dict[str, Any]:
    reply = httpx.post(url, json=body or GREETING)
    assert reply.status_code == 200, reply.text
    found: dict[str, Any] = reply.json()
    return found


def with_prompt(work: Callable[[Store, str], Awaitable[None]], **body: Any) -> None:
    """Run something with a store that holds one prompt."""

    async def scenario(url: str) -> None:
        store = await Store.open(url)
        text = PromptText.model_validate(body or GREETING)
        await work(store, (await prompts.create(store, text)).prompt_id)
        await store.aclose()

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(scenario(f"sqlite:///{folder}/state.db"))


# ---------------------------------------------------------------- over HTTP


def test_a_prompt_is_kept_and_read(url: str) -> None:
    found = made(url)
    assert re.fullmatch(r"pmpt_[0-9a-f]{48}", found["prompt_id"])
    assert found == GREETING | {"prompt_id": found["prompt_id"], "version": 1, "is_default": True}
    assert httpx.get(f"{url}/{found['prompt_id']}").json() == found
    assert found in httpx.get(url).json()["data"]


@pytest.mark.parametrize("method", ["POST", "PUT"])
def test_a_change_is_a_new_version(url: str, method: str) -> None:
    path = f"{url}/{made(url)['prompt_id']}"
    second = httpx.request(method, path, json={"prompt": "Hi", "version": 1}).json()
    assert (second["version"], second["variables"], second["is_default"]) == (2, [], True)
    third = httpx.request(method, path, json={"prompt": "Ho", "set_as_default": False}).json()
    assert (third["version"], third["is_default"]) == (3, False)
    versions = httpx.get(f"{path}/versions").json()["data"]
    assert [(each["version"], each["is_default"]) for each in versions] == [(1, False), (2, True), (3, False)]
    assert versions[0]["prompt"] == GREETING["prompt"]
    assert httpx.get(path).json() == second
    assert httpx.get(path, params={"version": 3}).json() == third
    chosen = httpx.request(method, f"{path}/set-default-version", json={"version": 1}).json()
    assert chosen == versions[0] | {"is_default": True}
    assert httpx.get(path).json() == chosen
    assert [each for each in httpx.get(url).json()["data"] if each["prompt_id"] == chosen["prompt_id"]] == [
        chosen
    ]


def test_a_prompt_is_deleted_with_its_versions(url: str) -> None:
    path = f"{url}/{made(url)['prompt_id']}"
    httpx.post(path, json={"prompt": "Hi"})
    reply = httpx.delete(path)
    assert reply.json() == {"id": path.rpartition("/")[2], "object": "prompt.deleted", "deleted": True}
    assert httpx.get(path).status_code == httpx.get(f"{path}?version=1").status_code == 404


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"prompt": "{{a}} {{b}}"}, "uses `a`, `b`, which `variables` does not declare"),
        ({"prompt": "{{a}} {{b}}", "variables": ["a"]}, "uses `b`"),
        ({"prompt": "x", "variables": ["not a name"]}, r"variables\[0\]"),
        ({"prompt": "x", "varaibles": []}, "varaibles"),
        ({}, "prompt"),
    ],
)
def test_a_prompt_declares_every_variable_that_it_uses(url: str, body: dict[str, Any], message: str) -> None:
    for path in (url, f"{url}/{made(url)['prompt_id']}"):
        reply = httpx.post(path, json=body)
        assert reply.status_code == 400
        assert re.search(message, reply.json()["error"]["message"])


def test_a_change_of_an_old_version_is_refused(url: str) -> None:
    path = f"{url}/{made(url)['prompt_id']}"
    httpx.post(path, json={"prompt": "mine"})
    reply = httpx.post(path, json={"prompt": "yours", "version": 1})
    assert reply.status_code == 400
    assert reply.json()["error"]["param"] == "version"
    assert len(httpx.get(f"{path}/versions").json()["data"]) == 2


@pytest.mark.parametrize("name", ["pmpt_none", "%00", "x" * 300])
def test_what_is_not_there_is_404(url: str, name: str) -> None:
    there = f"{url}/{name}"
    replies = [
        httpx.get(there),
        httpx.get(f"{url}/{made(url)['prompt_id']}?version=7"),
        httpx.get(f"{there}/versions"),
        httpx.post(there, json={"prompt": "x"}),
        httpx.post(f"{there}/set-default-version", json={"version": 1}),
        httpx.delete(there),
    ]
    for reply in replies:
        assert reply.status_code == 404, reply.text
        assert reply.json()["error"]["code"] == "not_found"


@pytest.mark.parametrize("version", ["0", "-1", "new", "99999999999"])
def test_a_version_is_a_number(url: str, version: str) -> None:
    reply = httpx.get(f"{url}/{made(url)['prompt_id']}?version={version}")
    assert reply.status_code == 400
    assert reply.json()["error"]["param"] == "version"


# ---------------------------------------------------------------- filled in


def test_a_prompt_is_filled_in_once() -> None:
    async def work(store: Store, prompt: str) -> None:
        values: dict[str, prompts.Value] = {
            "name": "{{language}}",
            "language": InputText(type="input_text", text=r"\1 {{name}}"),
        }
        text = await prompts.rendered(store, prompt, variables=values)
        assert text == r"Greet {{language}} in \1 {{name}}."
        await prompts.add_version(store, prompt, PromptText(prompt="Bye, {{who}}", variables=["who", "why"]))
        assert await prompts.rendered(store, prompt, variables={"who": "Bo"}) == "Bye, Bo"
        old = await prompts.rendered(store, prompt, version="1", variables={"name": "A", "language": "B"})
        assert old == "Greet A in B."

    with_prompt(work)


@pytest.mark.parametrize(
    ("variables", "param"),
    [
        ({"name": "x"}, "prompt.variables.language"),
        (None, "prompt.variables.language"),
        ({"name": "x", "language": "y", "nmae": "z"}, "prompt.variables.nmae"),
        (
            {"name": "x", "language": InputImage(type="input_image", image_url="x")},
            "prompt.variables.language",
        ),
    ],
)
def test_a_variable_that_is_missing_unknown_or_no_text_is_named(
    variables: dict[str, Any] | None, param: str
) -> None:
    async def work(store: Store, prompt: str) -> None:
        with pytest.raises(InvalidRequest) as caught:
            await prompts.rendered(store, prompt, variables=variables)
        assert caught.value.param == param
        assert param in str(caught.value)

    with_prompt(work)


@pytest.mark.parametrize("text", ['{"a": {{"b": 1}}}', "{{ two words }}", "{ {x} }", "{{}}", "{%x%}"])
def test_braces_around_anything_but_a_name_are_text(text: str) -> None:
    async def work(store: Store, prompt: str) -> None:
        assert await prompts.rendered(store, prompt) == text

    with_prompt(work, prompt=text)


def test_a_prompt_that_is_not_there_is_not_found() -> None:
    async def work(store: Store, prompt: str) -> None:
        with pytest.raises(NotFound):
            await prompts.rendered(store, "pmpt_none")
        with pytest.raises(NotFound, match="version 2 of prompt"):
            await prompts.rendered(store, prompt, version="2")
        with pytest.raises(InvalidRequest) as caught:
            await prompts.rendered(store, prompt, version="latest")
        assert caught.value.param == "prompt.version"

    with_prompt(work)


@pytest.mark.parametrize("kind", KINDS)
def test_many_who_change_a_prompt_at_once_each_make_a_version(kind: str, tmp_path: Path) -> None:
    async def scenario(url: str) -> None:
        stores = [await Store.open(url) for _ in range(2)]
        prompt = (await prompts.create(stores[0], PromptText(prompt="0"))).prompt_id
        await asyncio.gather(
            *(
                prompts.add_version(stores[number % 2], prompt, PromptText(prompt=str(number)))
                for number in range(1, 21)
            )
        )
        found = await prompts.versions(stores[0], prompt)
        assert [each.version for each in found] == [*range(1, 22)]
        assert {each.prompt for each in found} == {str(number) for number in range(21)}
        assert [each.version for each in found if each.is_default] == [21]
        for store in stores:
            await store.aclose()

    with database(kind, tmp_path) as url:
        asyncio.run(scenario(url))

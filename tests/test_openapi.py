"""The OpenAPI description is valid, and nothing that fits it, or nearly fits it, makes the server fail."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode

from llama_stack_lite.config import StackConfig
from tests.support.serving import serve
from tests.support.tiny import write_llama

MODELS = st.sampled_from(["test/scripted", "local/tiny"])
OTHERS = {"/v1/embeddings": "test/vectors", "/v1/rerank": "test/ranks", "/v1/moderations": "bird"}

# what requests with an id in their path may find, and the ids by the path that made them
THERE: dict[str, Any] = {
    "/v1/responses": {"model": "test/scripted", "input": "hi"},
    "/v1/conversations": {"items": [{"role": "user", "content": "hi"}]},
    "/v1/prompts": {"prompt": "Answer {{name}}.", "variables": ["name"]},
    "/v1/vector_stores": {"name": "texts"},
}
KNOWN: dict[str, str] = {}


@pytest.fixture(scope="module")
def schema(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The API of a server with a scripted model, a random llama.cpp one, and a shield."""
    tiny = write_llama(tmp_path_factory.mktemp("tiny") / "tiny.gguf")
    files = [{"name": tiny.name, "sources": [f"file:{tiny}"]}]
    card = {"id": "tiny", "tool_calling": "llama3-json", "files": files}
    scripted = {"provider": "scripted", "replies": ["one two three"], "loop": True}
    scripted |= {"embedding_models": ["vectors"], "rerank_models": ["ranks"]}
    local = {"provider": "llama-cpp", "models": [card], "slots": 2}
    inference = {"test": scripted, "local": local}
    safety = {"bird": {"provider": "canary"}}
    tools = {"sums": {"provider": "tests.support.responding:Sums"}}
    storage = f"sqlite:///{tmp_path_factory.mktemp('state')}/state.db"
    sections: dict[str, Any] = {"inference": inference, "safety": safety, "tools": tools, "storage": storage}
    folder = tmp_path_factory.mktemp("documents")
    sections["files"] = {"disk": {"provider": "local", "folder": str(folder / "files")}}
    sections["vector_io"] = {"faiss": {"provider": "faiss", "folder": str(folder / "vectors")}}
    sections["defaults"] = {"embedding_model": "test/vectors"}
    with serve(StackConfig.model_validate(sections)) as running:
        for path, body in THERE.items():
            made = httpx.post(f"{running.url}{path}", json=body)
            assert made.status_code == 200, made.text
            found = made.json()
            KNOWN[path] = found.get("id") or found["prompt_id"]
        yield schemathesis.openapi.from_url(f"{running.url}/openapi.json")


def test_the_description_is_valid(schema: Any) -> None:
    schema.validate()
    paths = {operation.ok().path for operation in schema.get_all_operations()}
    chat = {"/v1/chat/completions", "/v1/completions", "/v1/messages"}
    kept = {"/v1/responses", "/v1/responses/{response_id}", "/v1/conversations", "/v1/prompts"}
    found = {"/v1/files", "/v1/vector_stores", "/v1/vector_stores/{vector_store_id}/search"}
    assert chat | kept | found | {"/v1/embeddings", "/v1/models"} <= paths


def aimed(case: Any, model: str) -> Any:
    """Point a made-up request at a model, a shield or an id that exists, and keep its answer short."""
    here, _, first = case.operation.path.partition("/{")
    if here in KNOWN and case.method != "DELETE" and case.path_parameters:
        case.path_parameters[first.partition("}")[0]] = KNOWN[here]
    if isinstance(case.body, dict) and "shield_id" in case.body:
        case.body["shield_id"] = "bird"
    elif isinstance(case.body, dict):
        case.body["model"] = OTHERS.get(case.operation.path, model)
        for field in ("max_tokens", "max_completion_tokens"):
            if isinstance(case.body.get(field), int) or "prompt" in case.body or "messages" in case.body:
                case.body[field] = 3
        if case.operation.path == "/v1/responses":
            case.body["max_output_tokens"] = 3
        if isinstance(case.body.get("n"), int):
            case.body["n"] = min(case.body["n"], 3)
    return case


@pytest.mark.slow
def test_two_thousand_requests_and_no_5xx(schema: Any) -> None:
    statuses: Counter[int] = Counter()
    for found in schema.get_all_operations():
        operation = found.ok()
        good = operation.as_strategy(generation_mode=GenerationMode.POSITIVE)
        strategies = [good, st.builds(aimed, good, MODELS)]
        if operation.body or operation.path_parameters:
            strategies.append(operation.as_strategy(generation_mode=GenerationMode.NEGATIVE))
        many = 50 if operation.body else 15

        @settings(
            max_examples=many,
            deadline=None,
            database=None,
            derandomize=True,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(st.one_of(strategies))
        def check(case: Any) -> None:
            reply = case.call()
            statuses[reply.status_code] += 1
            assert reply.status_code < 500, case.as_curl_command()
            if reply.status_code >= 400:
                openais = {"message", "type", "param", "code"}
                is_anthropics = case.operation.path.startswith("/v1/messages")
                assert set(reply.json()["error"]) == ({"type", "message"} if is_anthropics else openais)
            case.validate_response(reply, checks=[schemathesis.checks.not_a_server_error])

        check()
    print(dict(statuses))
    assert statuses.total() >= 2000
    assert statuses[200] > 200

"""OpenAI's own types judge what we send: nothing is missing, or of another type, and little is our own."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
from openai.types.responses import CompactedResponse as CompactedResponse
from openai.types.responses import Response, ResponseItemList, ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter

EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)

# what we add to OpenAI's objects, by their class
OURS = {
    ("Response", "store"),  # OpenAI's server says it too; its types do not
    ("Response", "safety"),
    ("Response", "dropped_items"),
    ("ResponseFunctionWebSearch", "results"),  # OpenAI's `include` names it; its types do not
    ("McpApprovalRequest", "digest"),
    ("FileSearchTool", "search_mode"),
    ("FileSearchTool", "max_tokens"),
    ("Result", "number"),  # of a `file_search_call`
    ("Result", "chunk_id"),
    ("Result", "headings"),
    ("Result", "page"),
    ("AnnotationFileCitation", "chunk_id"),
    *(
        ("VectorStore", name)
        for name in ("description", "embedding_model", "embedding_dimension", "provider")
    ),
    *(("VectorStoreFile", name) for name in ("chunks", "progress")),
    *(("VectorStoreSearchResponse", name) for name in ("chunk_id", "position", "headings", "page")),
    ("OtherFileChunkingStrategyObject", "strategy"),
    ("ResponseFunctionCallArgumentsDoneEvent", "name"),  # earlier types have it
    ("Logprob", "bytes"),  # of a delta's, which the part's own logprobs have
    ("LogprobTopLogprob", "bytes"),
}
# events that tell the whole of what deltas have told
WHOLE = {"output_text.done", "refusal.done", "reasoning_text.done", "function_call_arguments.done"}
RAW = {"metadata", "input_schema", "parameters", "schema_", "variables", "filters"}


def unknown(found: Any) -> Iterator[tuple[str, str]]:
    """The fields that OpenAI's types do not have."""
    if isinstance(found, BaseModel):
        yield from ((type(found).__name__, name) for name in found.model_extra or {})
        for name in type(found).model_fields:
            if name not in RAW:
                yield from unknown(getattr(found, name))
    elif isinstance(found, list):
        for each in found:
            yield from unknown(each)


def official(kind: Any, data: Any) -> Any:
    """The object as one of OpenAI's, validated strictly."""
    found = TypeAdapter(kind).validate_python(data, strict=True)
    assert set(unknown(found)) <= OURS
    return found


def response(data: dict[str, Any]) -> dict[str, Any]:
    """A whole response, validated."""
    official(Response, data)
    ids = [item["id"] for item in data["output"]]
    assert len(set(ids)) == len(ids) and all(ids)
    assert (data["completed_at"] is not None) == (data["status"] == "completed")
    if data["status"] in ("completed", "incomplete", "failed", "cancelled"):
        assert not [item for item in data["output"] if item.get("status") in ("in_progress", "calling")]
    return data


def page(data: dict[str, Any]) -> dict[str, Any]:
    official(ResponseItemList, data)
    return data


def events(text: str, *, first: int = 0) -> list[dict[str, Any]]:
    """The events of a stream, each validated; they are numbered from `first` without a gap."""
    found = []
    for block in text.split("\n\n")[:-1]:
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        assert set(unknown(EVENT.validate_python(event, strict=True))) <= OURS, event
        found.append(event)
    assert [event["sequence_number"] for event in found] == list(range(first, first + len(found)))
    return found


def told(found: list[dict[str, Any]]) -> dict[str, Any]:
    """The response that a whole stream tells of: its events, put together, make the object it ends with."""
    assert [event["type"] for event in found[:2]] in (
        ["response.created", "response.in_progress"],
        ["response.created", "response.queued"],
    )
    final = response(found[-1]["response"])
    status = "failed" if final["status"] == "cancelled" else final["status"]
    assert found[-1]["type"] == f"response.{status}"
    assert {event["response"]["id"] for event in found if "response" in event} == {final["id"]}
    _annotated(found)
    if final["status"] in ("completed", "incomplete"):
        assert _rebuilt(found) == final["output"]
    return final


def _annotated(found: list[dict[str, Any]]) -> None:
    """The annotations of each text that are told one by one are those of the whole part."""
    noted: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for event in found:
        place = (event.get("item_id", ""), event.get("content_index", 0))
        if event["type"] == "response.output_text.annotation.added":
            noted.setdefault(place, []).append(event["annotation"])
            assert event["annotation_index"] == len(noted[place]) - 1
        elif event["type"] == "response.content_part.done":
            assert event["part"].get("annotations", []) == noted.get(place, []), event


def _rebuilt(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The output as a client puts it together that reads nothing but deltas, and in the end compares."""
    output: list[dict[str, Any]] = []
    grown: dict[tuple[str, int], str] = {}
    for event in found:
        kind = event["type"].removeprefix("response.")
        place = (event.get("item_id", ""), event.get("content_index", 0))
        if kind == "output_item.added":
            assert event["output_index"] == len(output)
            output.append(event["item"])
        elif kind == "output_item.done":
            assert output[event["output_index"]]["id"] == event["item"]["id"]
            output[event["output_index"]] = event["item"]
        elif "item_id" in event:
            assert output[event["output_index"]]["id"] == event["item_id"]
        if kind.endswith(".delta"):
            grown[place] = grown.get(place, "") + event["delta"]
        elif kind in WHOLE:
            said = [event[key] for key in ("text", "refusal", "arguments") if key in event]
            assert said == [grown.get(place, "")], event
    return output


def streamed(reply: httpx.Response) -> list[dict[str, Any]]:
    """The events of a reply that is a stream from its first event to its last."""
    assert reply.status_code == 200, reply.text
    assert reply.headers["content-type"].startswith("text/event-stream")
    assert "[DONE]" not in reply.text
    found = events(reply.text)
    told(found)
    return found

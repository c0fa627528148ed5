"""The safety matrix of /v1/responses: a request with a word at any path of its type."""

import base64
import re
from typing import Any

from llama_stack_lite.api.responses import ResponseRequest
from tests.support.paths import paths

Fields = dict[str, Any]

QUIET: Fields = {"model": "m/speaker", "input": [{"role": "user", "content": "what flew there?"}]}
SCHEMA: Fields = {"type": "object", "properties": {}}
LISTED: Fields = {"name": "look", "input_schema": SCHEMA}
EXAMPLES: dict[str, Fields] = {
    "MessageItem": {"type": "message", "role": "user", "content": "hello"},
    "InputText": {"type": "input_text", "text": "hello"},
    "InputImage": {"type": "input_image", "image_url": "data:image/png;base64,AA=="},
    "InputFile": {"type": "input_file", "filename": "a.pdf", "file_data": "data:application/pdf;base64,AA=="},
    "OutputText": {"type": "output_text", "text": "hello"},
    "OutputRefusal": {"type": "refusal", "refusal": "no"},
    "FunctionCallItem": {"type": "function_call", "call_id": "c1", "name": "look", "arguments": "{}"},
    "FunctionCallOutputItem": {"type": "function_call_output", "call_id": "c1", "output": "hello"},
    "ReasoningItem": {"type": "reasoning", "summary": []},
    "MCPListToolsItem": {"type": "mcp_list_tools", "server_label": "shelf", "tools": [LISTED]},
    "MCPApprovalRequestItem": {
        "type": "mcp_approval_request",
        "server_label": "shelf",
        "name": "look",
        "arguments": "{}",
    },
    "MCPApprovalResponseItem": {
        "type": "mcp_approval_response",
        "approval_request_id": "mcpr_1",
        "approve": False,
    },
    "MCPCallItem": {"type": "mcp_call", "server_label": "shelf", "name": "look", "arguments": "{}"},
    "WebSearchItem": {"type": "web_search_call", "action": {"type": "search", "query": "birds"}},
    "FileSearchItem": {"type": "file_search_call", "queries": ["birds"]},
    "CodeInterpreterItem": {"type": "code_interpreter_call", "code": "1"},
    "CompactionItem": {"type": "compaction", "encrypted_content": "aGVsbG8="},
    "ItemReference": {"type": "item_reference", "id": "msg_1"},
    "AgentTool": {"type": "agent", "name": "helper"},
    "FunctionTool": {"type": "function", "name": "look"},
    "MCPServer": {"type": "mcp", "server_label": "shelf"},
    "WebSearchTool": {"type": "web_search"},
    "FileSearchTool": {"type": "file_search", "vector_store_ids": ["vs_1"]},
    "CodeInterpreterTool": {"type": "code_interpreter"},
    "NamedFunctionChoice": {"type": "function", "name": "look"},
    "MCPChoice": {"type": "mcp", "server_label": "shelf"},
    "HostedChoice": {"type": "web_search"},
    "AllowedChoice": {
        "type": "allowed_tools",
        "mode": "auto",
        "tools": [{"type": "function", "name": "look"}],
    },
    "AutoContainer": {"type": "auto"},
    # of one kind only, so known by their field
    "tools": LISTED,
    "prompt": {"id": "pmpt_1"},
    "conversation": {"id": "conv_1"},
    "format": {"type": "json_schema", "name": "a", "schema": SCHEMA},
    "summary": {"type": "summary_text", "text": "hm"},
    "content": {"type": "reasoning_text", "text": "hm"},
}
STEP = re.compile(r"(?P<name>\w+|\*)(?P<list>\[\])?(?:<(?P<kind>\w+)>)?(?P<keys>\[?\]?\{\})?$")
NOT_READ = "kept as the client's own; no model reads it"
IMAGE = "an image or a file: judged as one, or refused, or allowed by the operator"
# what is no text to a model, and why: `re.fullmatch`
SILENT = {
    r"model": "names a model of the stack",
    r"guardrails\[\]": "names shields of the stack",
    r"previous_response_id|conversation(\.id|\.\*)?": "names what is kept",
    r"prompt\.(id|version|\*)|prompt_cache_key|user|safety_identifier": "names, for the server alone",
    r"metadata\{\}": "the client's notes, for nobody else",
    r"stream_options\.\*|\*": "dropped",
    r"input\[\]<ItemReference>\..*": "names what is kept",
    r".*\.(id|file_id|approval_request_id|digest|connector_id|container_id|file_url)": "names something",
    r".*<InputImage>\.image_url": IMAGE,
    r".*<Input(Image|File)>\.\*": NOT_READ,
    r".*<InputFile>\..*": IMAGE,
    r".*<(Output|Input)Text>\.\*|.*<OutputText>\.(annotations|logprobs).*|.*<OutputRefusal>\.\*": NOT_READ,
    r"input\[\]<\w+Item>\.\*": NOT_READ,
    r"input\[\]<ReasoningItem>\..*": NOT_READ,
    r"input\[\]<MCP(List|Approval).*": "read only where the server it names is among the tools: other tests",
    r"input\[\]<MCPCallItem>\.server_label": NOT_READ,
    r"input\[\]<MCPCallItem>\.error\{\}": NOT_READ,
    r"input\[\]<WebSearchItem>\.action\{\}": NOT_READ,
    r"input\[\]<(Web|File)SearchItem>\.results\[\]\{\}": NOT_READ,
    r"input\[\]<CodeInterpreterItem>\.outputs\[\]\{\}": NOT_READ,
    r"tools\[\]<(Web|File|Code|MCP|Agent).*": "of servers that are not there, so refused",
    r"prompt\.variables\{\}": "put into a stored prompt: another test",
    r"tool_choice.*": "names of the tools, which are judged",
    r"reasoning\.\*|text\.\*|text\.format\.\*": "dropped",
}
# what only some values of a field that is otherwise not read say to a model
SAID: dict[str, Any] = {
    "input[]<WebSearchItem>.action{}": lambda text: {"query": text},
    "input[]<WebSearchItem>.results[]{}": lambda text: [{"title": "a", "snippet": text}],
    "input[]<FileSearchItem>.results[]{}": lambda text: [{"filename": "a", "text": text}],
    "input[]<CodeInterpreterItem>.outputs[]{}": lambda text: [{"type": "logs", "logs": text}],
    "input[]<MCPCallItem>.error{}": lambda text: {"content": [{"type": "text", "text": text}]},
}


def why_silent(path: str) -> str | None:
    return next((why for pattern, why in SILENT.items() if re.fullmatch(pattern, path)), None)


PATHS = list(paths(ResponseRequest))
JUDGED = [path for path in PATHS if why_silent(path) is None]


def put(path: str, text: str) -> Fields:
    """A request with a text at a path, among the least that a request must have."""
    fields: Fields = {}
    _put(fields, path.split("."), _leaf(path, text))
    items = fields.get("input", [])
    given = items if isinstance(items, str) else [*QUIET["input"], *items, *QUIET["input"]]
    return {**QUIET, **fields, "input": given}


def _leaf(path: str, text: str) -> Any:
    if path in SAID:
        return SAID[path](text)
    if path.endswith("[]{}"):
        return [{"a": text}]
    if path.endswith("{}"):
        return (
            {"properties": {"a": {"type": "string", "description": text}}}
            if "schema" in path
            else {text: text}
        )
    if path.endswith(".name") and "Call" not in path:
        return text.replace(" ", "_").replace(",", "")
    if path.endswith("encrypted_content"):
        return base64.b64encode(text.encode()).decode()
    return text


def _put(target: Fields, steps: list[str], leaf: Any) -> None:
    step = STEP.match(steps[0])
    assert step, steps[0]
    value = leaf
    if len(steps) > 1:
        value = dict(EXAMPLES.get(step["kind"] or step["name"], {}))
        if any("<Output" in each for each in steps[1:]):
            value["role"] = "assistant"
        _put(value, steps[1:], leaf)
    name = "note" if step["name"] == "*" else step["name"]
    target[name] = [value] if step["list"] and not isinstance(value, list) else value

"""MCP's words in ours: tools as functions, and what they answer as text."""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator

from mcp_types import (
    AudioContent,
    BlobResourceContents,
    CallToolResult,
    ContentBlock,
    ImageContent,
    ResourceLink,
    TextContent,
    Tool,
)

from llama_stack_lite.api.inference import FunctionDefinition
from llama_stack_lite.api.tools import ToolResult
from llama_stack_lite.errors import UpstreamError

LONGEST_NAME = 64
LONGEST_DESCRIPTION = 16 * 1024  # bytes, as are the next
LARGEST_SCHEMA = 64 * 1024


def name_of(original: str) -> str:
    """The name that models know a tool by: its own where that is one, else one that tells it from others."""
    if re.fullmatch(rf"[a-zA-Z0-9_-]{{1,{LONGEST_NAME}}}", original):
        return original
    digest = hashlib.sha256(original.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    plain = re.sub(r"[^a-zA-Z0-9_-]", "_", original)[: LONGEST_NAME - len(digest) - 1]
    return f"{plain}-{digest}"


def function(tool: Tool) -> FunctionDefinition:
    """A tool as a function; its description is data, whatever it says.

    Raises `UpstreamError` where description or schema are larger than any that is meant to be read.
    """
    description = tool.description or tool.title
    size = len((description or "").encode("utf-8", "surrogatepass"))
    if size > LONGEST_DESCRIPTION:
        raise _too_large(tool, "description", size, LONGEST_DESCRIPTION)
    if (size := len(json.dumps(tool.input_schema))) > LARGEST_SCHEMA:
        raise _too_large(tool, "schema", size, LARGEST_SCHEMA)
    return FunctionDefinition(name=name_of(tool.name), description=description, parameters=tool.input_schema)


def _too_large(tool: Tool, what: str, size: int, most: int) -> UpstreamError:
    return UpstreamError(
        f"the {what} of tool `{tool.name[:LONGEST_NAME]}` has {size:,} bytes, and {most:,} are the most; "
        "name the other tools in `allowed_tools`"
    )


def result(answer: CallToolResult, *, most: int) -> ToolResult:
    """What a tool answered, as a model reads it: its text, and in words what cannot be text.

    An answer of more than `most` bytes is an error; none is cut short.
    """
    text = "\n".join(_texts(answer.content))
    if not text and answer.structured_content is not None:
        text = json.dumps(answer.structured_content, ensure_ascii=False)
    if (size := len(text.encode("utf-8", "surrogatepass"))) > most:
        return ToolResult(text=f"the tool's answer has {size:,} bytes, and {most:,} are the most", error=True)
    if not text and answer.is_error:
        text = "the tool failed and did not say why"
    return ToolResult(text=text, error=answer.is_error)


def _texts(blocks: Iterable[ContentBlock]) -> Iterator[str]:
    for block in blocks:
        if isinstance(block, TextContent):
            yield block.text
        elif isinstance(block, ImageContent | AudioContent):
            yield _binary(block.type, block.mime_type, block.data)
        elif isinstance(block, ResourceLink):
            about = f": {block.description}" if block.description else ""
            yield f"[resource `{block.name}` at {block.uri}{about}]"
        elif isinstance(block.resource, BlobResourceContents):
            kind = block.resource.mime_type or "unknown type"
            yield _binary(f"resource at {block.resource.uri}", kind, block.resource.blob)
        else:
            yield block.resource.text


def _binary(what: str, kind: str, data: str) -> str:
    return f"[{what}, {kind}, {len(data) * 3 // 4} bytes, not shown]"

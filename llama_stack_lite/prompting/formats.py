"""The formats of tool calls by name, and which of them a model's chat template asks for."""

from llama_stack_lite.api.models import ToolCalling
from llama_stack_lite.errors import ConfigError

from .calling import Format, Invalid, Parsed
from .llama import PYTHON_TAG, Llama3Json, LlamaPythonic
from .tagged import TOOL_CALL, TOOL_CALLS, Hermes, Mistral

__all__ = ["FORMATS", "Format", "Invalid", "Parsed", "detect", "format_for"]

FORMATS: dict[str, Format] = {
    form.name: form for form in (Llama3Json(), LlamaPythonic(), Hermes(), Mistral())
}


def format_for(name: ToolCalling) -> Format:
    """The format of that name; raises `ConfigError` for `assisted` and `remote`, which are none."""
    if name not in FORMATS:
        raise ConfigError(f"tool_calling: `{name}` is no format of tool calls; there is {', '.join(FORMATS)}")
    return FORMATS[name]


def detect(template_source: str | None) -> ToolCalling:
    """Tell from its chat template how a model calls tools; `assisted` where it knows none of our formats."""
    source = template_source or ""

    def has(*marks: str) -> bool:
        return any(mark in source for mark in marks)

    if not has("tools"):
        return "assisted"
    if has(TOOL_CALLS):
        return "mistral"
    if has(TOOL_CALL):
        # newer families keep the tag and write XML inside it
        return "assisted" if has("<parameter=", "<arg_key>") else "hermes"
    if has("[func_name1(", "[func1(", "<|python_start|>"):
        return "llama-pythonic"
    if has("<|start_header_id|>") and has(PYTHON_TAG, '"parameters"', "ipython"):
        return "llama3-json"
    return "assisted"

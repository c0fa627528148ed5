"""The JSON Schema of a distribution file, for editors that complete and check it."""

from typing import Any

from llama_stack_lite.errors import ConfigError
from llama_stack_lite.plugins import config_class, plugins

from .sections import StackConfig

Schema = dict[str, Any]
REFERENCE: Schema = {"type": "string", "pattern": r"\$\{env\."}
CONSTRAINED = {"enum", "const", "pattern", "format", "minLength", "maxLength"}  # what a reference would break
LISTS = ("anyOf", "allOf", "oneOf", "prefixItems")
MAPPINGS = ("properties", "patternProperties", "$defs")
SINGLES = ("items", "additionalProperties", "then")


def schema() -> Schema:
    """The schema of the whole file, with the keys of every installed provider whose packages are here."""
    whole = StackConfig.model_json_schema()
    definitions: Schema = whole["$defs"]
    entry = definitions.pop("ProviderEntry")
    for api in StackConfig().providers():
        section = _pointing(whole["properties"][api], f"#/$defs/{api}")
        whole["properties"][api] = section | {"additionalProperties": False}  # names match a pattern
        named = entry["properties"]["provider"] | {
            "anyOf": [{"enum": sorted(plugins(api))}, {"pattern": ":"}]
        }
        properties = entry["properties"] | {"provider": named}
        definitions[api] = entry | {"properties": properties, "allOf": _by_provider(api, definitions)}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **_open(whole)}


def _pointing(part: Any, target: str) -> Any:
    """A part of a schema whose references to a provider's entry lead to that of its API."""
    if isinstance(part, dict):
        return {key: target if key == "$ref" else _pointing(value, target) for key, value in part.items()}
    return part


def _by_provider(api: str, definitions: Schema) -> list[Schema]:
    """A condition for each plug-in that can be imported; its own definitions join the file's."""
    conditions = []
    for name in sorted(plugins(api)):
        try:
            config = config_class(api, name)
        except ConfigError:
            continue
        prefix = f"{api}.{name}"
        own = config.model_json_schema(ref_template=f"#/$defs/{prefix}.{{model}}")
        definitions |= {f"{prefix}.{key}": value for key, value in own.pop("$defs", {}).items()}
        definitions[prefix] = own | {"properties": own.get("properties", {}) | {"provider": {"const": name}}}
        matches = {"properties": {"provider": {"const": name}}, "required": ["provider"]}
        conditions.append({"if": matches, "then": {"$ref": f"#/$defs/{prefix}"}})
    return conditions


def _open(part: Any) -> Any:
    """A schema that also takes `${env.NAME}` for every scalar that is more than any text."""
    if not isinstance(part, dict):
        return part
    opened = dict(part)
    for key, value in part.items():
        if key in LISTS:
            opened[key] = [_open(item) for item in value]
        elif key in MAPPINGS:
            opened[key] = {name: _open(item) for name, item in value.items()}
        elif key in SINGLES:
            opened[key] = _open(value)
    if part.get("type") in ("integer", "number", "boolean") or CONSTRAINED & part.keys():
        about = {key: opened.pop(key) for key in ("title", "description", "default") if key in opened}
        return {**about, "anyOf": [opened, REFERENCE]}
    return opened

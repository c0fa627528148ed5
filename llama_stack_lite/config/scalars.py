"""YAML's scalars: numbers, booleans, null, and text for all else."""

from collections.abc import Callable

import yaml
from yaml.constructor import SafeConstructor
from yaml.resolver import Resolver

from .tree import Scalar

TAG = "tag:yaml.org,2002:"
TAGGED = "a tag means nothing here; put text that begins with ! in quotes"
_TAG_OF: Callable[..., str] = Resolver().resolve
_READ = SafeConstructor()
_TYPES = {
    f"{TAG}null": _READ.construct_yaml_null,
    f"{TAG}bool": _READ.construct_yaml_bool,
    f"{TAG}int": _READ.construct_yaml_int,
    f"{TAG}float": _READ.construct_yaml_float,
}
_TEXT = {f"{TAG}{name}" for name in ("str", "timestamp", "merge", "value")}  # a date is text here


def scalar(node: yaml.ScalarNode) -> Scalar:
    """The value of a scalar by its tag; raises `ValueError` where the tag and the text disagree."""
    if node.tag in _TEXT:
        return str(node.value)
    if node.tag not in _TYPES:
        raise ValueError(TAGGED)
    try:
        value: Scalar = _TYPES[node.tag](node)
    except (ValueError, KeyError, IndexError):
        raise ValueError(f"is no {node.tag.removeprefix(TAG)}") from None
    return value


def typed(text: str) -> Scalar:
    """Read plain text as YAML would; never as a list or a mapping."""
    tag = _TAG_OF(yaml.ScalarNode, text, (True, False))
    try:
        return scalar(yaml.ScalarNode(tag, text))
    except ValueError:
        return text

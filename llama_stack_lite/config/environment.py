"""`${env.NAME}` and `${env.NAME:=default}`, expanded inside values and nowhere else."""

import os
import re
from dataclasses import replace

from .scalars import typed
from .tree import Node, Path, Problems, Scalar

_REFERENCE = re.compile(r"\$?\$\{env\.([^}]*)\}?")
_FORM = re.compile(r"\$\{env\.(\w+)(:=([^}]*))?\}", re.ASCII)


def expand(node: Node, path: Path, problems: Problems) -> Node:
    """Expand the references of a tree; a value stays one scalar whatever its variable holds.

    A plain scalar that is a number or a boolean afterwards is read as one, and keeps its text for a key that
    wants text. An empty variable counts as one that is not set.
    """
    if isinstance(node.value, dict):
        children = {key: expand(child, (*path, key), problems) for key, child in node.value.items()}
        return replace(node, value=children)
    if isinstance(node.value, list):
        items = [expand(child, (*path, index), problems) for index, child in enumerate(node.value)]
        return replace(node, value=items)
    if not isinstance(node.value, str) or "${env." not in node.value:
        return node
    text = _expanded(node, path, problems)
    if not text and _FORM.fullmatch(node.value):
        return replace(node, value=None)
    value: Scalar = typed(text) if node.plain else text
    return replace(node, value=text if value is None else value, text=text)


def _expanded(node: Node, path: Path, problems: Problems) -> str:
    wrong: list[str] = []

    def value(match: re.Match[str]) -> str:
        reference = match[0]
        if reference.startswith("$$"):
            return reference[1:]
        form = _FORM.fullmatch(reference)
        if form is None:
            wrong.append("write ${env.NAME} or ${env.NAME:=default}, or $${env. for the text itself")
            return ""
        name, _, default = form.groups()
        found = os.environ.get(name) or default
        if found is None:
            state = "is empty" if name in os.environ else "is not set"
            wrong.append(f"environment variable {name} {state}; set it, or write ${{env.{name}:=default}}")
        return found or ""

    text = _REFERENCE.sub(value, str(node.value))
    if wrong:
        problems.add(node.place, path, "; ".join(dict.fromkeys(wrong)))
    return text

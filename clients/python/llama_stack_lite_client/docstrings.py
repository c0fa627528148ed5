"""What a function's docstring says of it and of each parameter: in Google's, numpy's or reST's style."""

from __future__ import annotations

import inspect
import re

GOOGLE = re.compile(r"(Args|Arguments|Parameters|Params):\s*")
NUMPY = re.compile(r"(Parameters|Other Parameters)\s*\n-{3,}\s*")
OTHER = re.compile(
    r"(Args|Arguments|Parameters|Params|Returns?|Yields?|Raises|Examples?|Notes?|Warnings?|See Also):\s*"
    r"|\w[\w ]*\n-{3,}\s*"
)
REST = re.compile(r":param\s+(?:[^:]*\s)?(\*{0,2}\w+)\s*:\s*(.*?)(?=\n\s*:\w|\n\s*\n|\Z)", re.S)
REST_FIELD = re.compile(r"^\s*:\w[^:\n]*:", re.M)
ENTRY = re.compile(r"(\*{0,2}\w+)\s*(?:\([^)]*\))?\s*:\s*(.*)", re.S)  # of Google's list


def read(function: object) -> tuple[str, dict[str, str]]:
    """The description, up to the first section, and what is said of each parameter."""
    text = inspect.getdoc(function) or ""
    found = {name.lstrip("*"): _line(said) for name, said in REST.findall(text)}
    blocks = _blocks(text)
    described: list[str] = []
    for head, body in blocks:
        if head is None:
            described.append(body)
        elif GOOGLE.fullmatch(head):
            found |= _google(body)
        elif NUMPY.fullmatch(head):
            found |= _numpy(body)
    description = described[0] if described else ""
    fields = REST_FIELD.search(description)
    return (description[: fields.start()] if fields else description).strip(), found


def _blocks(text: str) -> list[tuple[str | None, str]]:
    """The text in sections, each with its heading; the first has none."""
    lines = text.splitlines()
    blocks: list[tuple[str | None, list[str]]] = [(None, [])]
    number = 0
    while number < len(lines):
        two = "\n".join(lines[number : number + 2])
        for head in (two, lines[number]):
            if OTHER.fullmatch(head):
                blocks.append((head, []))
                number += head.count("\n")
                break
        else:
            blocks[-1][1].append(lines[number])
        number += 1
    return [(head, "\n".join(body)) for head, body in blocks]


def _google(body: str) -> dict[str, str]:
    """`name (type): what it is`, with what belongs to it indented deeper."""
    matches = [ENTRY.fullmatch(entry) for entry in _entries(inspect.cleandoc(body))]
    return {match[1].lstrip("*"): _line(match[2]) for match in matches if match}


def _numpy(body: str) -> dict[str, str]:
    """`name : type`, and below it, indented, what it is; several names may share that."""
    found: dict[str, str] = {}
    for entry in _entries(inspect.cleandoc(body)):
        head, _, said = entry.partition("\n")
        for name in head.partition(":")[0].split(","):
            found[name.strip().lstrip("*")] = _line(said)
    return found


def _entries(body: str) -> list[str]:
    """Lines that are not indented, each with those below it that are."""
    found: list[str] = []
    for line in body.splitlines():
        if line[:1].strip() or not found:
            found.append(line)
        else:
            found[-1] += "\n" + line
    return found


def _line(text: str) -> str:
    return " ".join(text.split())

"""A passage that was found, as people read it: where it stands, and its words beside those asked for."""

import re
from typing import Any

import click

SNIPPET = 320  # characters of a passage that are shown
SHORT = 3  # letters of words that say too little to be marked


def shown(number: int, hit: dict[str, Any], query: str) -> str:
    """Number, score, place, and the part of the passage that has most of the query's words, marked."""
    place = " > ".join([click.style(hit["filename"], bold=True), *hit.get("headings", [])])
    page = f" (page {hit['page']})" if hit.get("page") else ""
    text = " ".join(part["text"] for part in hit["content"])
    head = f"{number}. {hit['score']:.2f}  {place}{page}"
    return f"{head}\n   {_marked(_snippet(' '.join(text.split()), query), query)}"


def _pattern(query: str) -> re.Pattern[str] | None:
    """The words of the query, each with another ending too."""
    words = {word.lower() for word in re.findall(r"\w+", query) if len(word) > SHORT} or set(query.split())
    stems = sorted(
        (re.escape(word[: max(SHORT + 1, len(word) - 2)]) for word in words), key=len, reverse=True
    )
    return re.compile(rf"(?<!\w)(?:{'|'.join(stems)})\w*", re.I) if stems else None


def _snippet(text: str, query: str) -> str:
    pattern = _pattern(query)
    if len(text) <= SNIPPET or pattern is None:
        return text[:SNIPPET]
    found = [(match.start(), match[0].lower()) for match in pattern.finditer(text)]
    starts = [max(0, place - SNIPPET // 4) for place, _ in found] or [0]

    def rich(start: int) -> int:
        return len({word for place, word in found if start <= place < start + SNIPPET - 20})

    best = max(starts, key=rich)
    start = text.rfind(" ", 0, best) + 1 if best else 0
    end = text.rfind(" ", start, start + SNIPPET) if start + SNIPPET < len(text) else len(text)
    return f"{'...' if start else ''}{text[start:end]}{'...' if end < len(text) else ''}"


def _marked(text: str, query: str) -> str:
    pattern = _pattern(query)
    return pattern.sub(lambda match: click.style(match[0], fg="yellow", bold=True), text) if pattern else text

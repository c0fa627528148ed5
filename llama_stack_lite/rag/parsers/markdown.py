"""Markdown, by its blocks; what stands inside them is kept as it was written."""

import re
from collections.abc import Iterator

from markdown_it import MarkdownIt
from markdown_it.token import Token

from .document import Block, Document, Kind
from .text import read as read_plain

KINDS: dict[str, Kind] = {
    "paragraph_open": "text",
    "blockquote_open": "text",
    "html_block": "text",
    "bullet_list_open": "list",
    "ordered_list_open": "list",
    "table_open": "table",
    "fence": "code",
    "code_block": "code",
}
FRONT = re.compile(r"---\n(.{0,20000}?)\n(?:---|\.\.\.)\n", re.S)
TITLE = re.compile(r"^title:(.*)$", re.M | re.I)
LONG = (
    8 * 1024 * 1024
)  # characters; nobody wrote that by hand, and its tokens would take a hundred times that

# inline marks stay as they are; link definitions are text like any other
parser = MarkdownIt("commonmark").enable("table").disable(["inline", "reference"])


def read(document: Document) -> Iterator[Block]:
    """The blocks of the outermost level, in the words of the source."""
    text = document.text()
    if len(text) > LONG:
        yield from read_plain(document)
        return
    if front := FRONT.match(text):
        title = TITLE.search(front[1])
        document.title = title[1].strip(" \t\"'") if title else None
        yield Block("code", front[1])
        text = text[front.end() :]
    source = text.split("\n")
    tokens = parser.parse(text)
    for token, following in zip(tokens, [*tokens[1:], None], strict=True):
        if token.level == 0 and token.map and following:
            yield from _block(token, following, source)
    if tokens and tokens[-1].level == 0 and tokens[-1].map:
        yield from _block(tokens[-1], tokens[-1], source)


def _block(token: Token, following: Token, source: list[str]) -> Iterator[Block]:
    assert token.map
    if token.type == "heading_open":
        yield Block("heading", following.content, level=int(token.tag[1:]))
    elif token.type in KINDS:
        yield Block(KINDS[token.type], "\n".join(source[token.map[0] : token.map[1]]))

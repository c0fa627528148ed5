"""HTML: the content of a page, without the navigation around it."""

import re
from collections.abc import Iterator
from copy import deepcopy
from itertools import pairwise

import trafilatura
from lxml.html import HtmlElement, HTMLParser, document_fromstring

from .document import Block, Document
from .markup import Page

SILENT = "script style template noscript iframe object svg math button select nav footer"
CHARSET = re.compile(rb"<meta[^>]{0,200}?charset\s*=\s*[\"']?\s*([\w.:-]{1,40})", re.I)
FEW_LINKS = 0.15  # of the characters of a page: there is nothing around its content
FOUND = 0.5  # of the characters outside links: trafilatura is believed that the rest is no content


def read(document: Document) -> Iterator[Block]:
    """What `<main>` or the like holds; else from where to where trafilatura sees content; else all."""
    declared = CHARSET.search(document.start)
    text = document.decoded(declared[1].decode() if declared else None)
    # as bytes, for lxml refuses a str that declares an encoding
    parser = HTMLParser(encoding="utf-8", remove_comments=True, remove_pis=True)
    tree = document_fromstring(text.encode("utf-8", "replace"), parser=parser, ensure_head_body=True)
    title = tree.findtext(".//title")
    document.title = " ".join(title.split()) if title else None
    for element in [*tree.iter(*SILENT.split()), *tree.find_class("headerlink")]:
        element.drop_tree()
    part = _declared(tree)
    if part is not None:
        yield from Page().blocks(part)
        return
    whole, linked = _length(tree.body), sum(map(_length, tree.body.iter("a")))
    blocks = Page().blocks(tree.body)
    if linked <= FEW_LINKS * whole:
        yield from blocks
    else:
        yield from _content(list(blocks), tree, least=int(FOUND * (whole - linked)))


def _declared(tree: HtmlElement) -> HtmlElement | None:
    """The element that a page itself says is its content."""
    for path in ("//main", "//*[@role='main']", "//article"):
        found = tree.xpath(path)
        if len(found) == 1 and _length(found[0]):
            return found[0]
    return None


def _length(element: HtmlElement) -> int:
    return sum(len(text.strip()) for text in element.itertext())


def _content(blocks: list[Block], tree: HtmlElement, *, least: int) -> list[Block]:
    """The blocks from the first to the last of those that trafilatura takes for content.

    It tells them well from what stands around, and loses headings and tables among them, so that its own
    text is not what is kept. Where that is fewer than `least` characters, it is not believed.
    """
    result = trafilatura.bare_extraction(deepcopy(tree), include_comments=False, favor_recall=True, fast=True)
    body = getattr(result, "body", None)
    known = set(_pairs(" ".join(body.itertext()))) if body is not None else set()
    hits = [at for at, block in enumerate(blocks) if _mostly(_pairs(block.text), known)]
    if not hits:
        return blocks
    start, end = hits[0], hits[-1] + 1
    while start and blocks[start - 1].kind == "heading":
        start -= 1
    content = blocks[start:end]
    return content if sum(len(block.text) for block in content) >= least else blocks


def _pairs(text: str) -> list[tuple[str, str]]:
    """The words of a text, each with the next."""
    return list(pairwise(re.findall(r"\w+", text)))


def _mostly(pairs: list[tuple[str, str]], known: set[tuple[str, str]]) -> bool:
    return len(pairs) >= 3 and sum(pair in known for pair in pairs) >= 0.9 * len(pairs)

"""XML of any kind: the texts of its elements."""

from collections.abc import Iterator

from lxml import etree

from .document import Block, Document
from .pieces import grouped

parser = etree.XMLParser(
    resolve_entities=False,
    no_network=True,
    load_dtd=False,
    recover=True,
    remove_comments=True,
    remove_pis=True,
)


def read(document: Document) -> Iterator[Block]:
    """Texts in their order, small ones together; entities that a file defines stay unexpanded."""
    root = etree.fromstring(document.data(), parser)
    texts = (" ".join(text.split()) for text in root.itertext()) if root is not None else ()
    for piece in grouped((text for text in texts if text), glue=" "):
        yield Block("text", piece)

"""DOCX: paragraphs, headings by their styles, lists and tables, in the order of the document."""

import re
from collections.abc import Iterator
from typing import Any

import docx
from docx.opc.part import Part
from docx.oxml import parse_xml
from docx.oxml.ns import nsmap, qn

from .document import Block, Document
from .pieces import TABLE, table

HEADING = re.compile(r"heading (\d)", re.I)
# texts that were deleted, and the second form in which old programs are given what new ones read
LEFT_OUT = frozenset(
    (qn("w:del"), qn("w:moveFrom"), "{http://schemas.openxmlformats.org/markup-compatibility/2006}Fallback")
)
BREAKS = {qn("w:tab"): "\t", qn("w:br"): "\n", qn("w:cr"): "\n", qn("w:noBreakHyphen"): "-"}
VALUE = qn("w:val")


def read(document: Document) -> Iterator[Block]:
    """The body, then the footnotes and endnotes."""
    word = docx.Document(document.file)
    document.title = word.core_properties.title or None
    styles = {style.get(qn("w:styleId")): style for style in word.styles.element.iter(qn("w:style"))}
    yield from _listed(_blocks(word.element.body, styles))
    for relation in word.part.rels.values():
        if relation.reltype.endswith(("/footnotes", "/endnotes")) and isinstance(relation.target_part, Part):
            yield from _listed(_blocks(parse_xml(relation.target_part.blob), styles))


def _blocks(element: Any, styles: dict[str, Any]) -> Iterator[Block]:
    for child in element:
        if child.tag == qn("w:p"):
            yield from _paragraph(child, styles)
        elif child.tag == qn("w:tbl"):
            yield from table(_rows(child))
        elif child.tag not in LEFT_OUT:  # content controls and the like
            yield from _blocks(child, styles)


def _paragraph(element: Any, styles: dict[str, Any]) -> Iterator[Block]:
    text = "".join(_runs(element)).strip()
    if not text:
        return
    level, listed = _standing(element.find(qn("w:pPr")), styles)
    if level:
        yield Block("heading", " ".join(text.split()), level=level)
    else:
        yield Block("list", f"- {text}") if listed else Block("text", text)


def _standing(properties: Any, styles: dict[str, Any]) -> tuple[int, bool]:
    """The level of a heading or 0, and whether it is an item of a list; by the paragraph or its styles."""
    listed = False
    for _ in range(10):  # styles are based on others, in a hostile file in a circle
        if properties is None:
            break
        outline = properties.find(".//" + qn("w:outlineLvl"))
        if outline is not None and outline.get(VALUE, "9").isdigit() and int(outline.get(VALUE)) < 9:
            return min(int(outline.get(VALUE)) + 1, 6), False
        listed = listed or properties.find(".//" + qn("w:numPr")) is not None
        follow = properties.find(qn("w:pStyle"))
        follow = follow if follow is not None else properties.find(qn("w:basedOn"))
        properties = styles.get(follow.get(VALUE)) if follow is not None else None
        name = properties.find(qn("w:name")) if properties is not None else None
        named = name.get(VALUE, "").lower() if name is not None else ""
        if heading := HEADING.match(named):
            return min(max(int(heading[1]), 1), 6), False
        if named == "title":
            return 1, False
        listed = listed or named.startswith("list")
    return 0, listed


def _runs(element: Any) -> Iterator[str]:
    """The text of an element, without what was deleted from it."""
    for child in element:
        if child.tag == qn("w:t"):
            yield child.text or ""
        elif child.tag in BREAKS:
            yield BREAKS[child.tag]
        elif child.tag not in LEFT_OUT and isinstance(child.tag, str):
            yield from _runs(child)
            if child.tag == qn("w:p"):  # of a text box, or of a table in a table
                yield "\n"


def _rows(element: Any) -> Iterator[list[str]]:
    for row in element.xpath("./w:tr | ./w:sdt/w:sdtContent/w:tr", **_names(element)):
        cells = row.xpath("./w:tc | ./w:sdt/w:sdtContent/w:tc", **_names(row))
        yield ["".join(_runs(cell)) for cell in cells]


def _names(element: Any) -> dict[str, Any]:
    """Elements of python-docx know the prefixes of names; plain ones must be told."""
    return {} if hasattr(element, "first_child_found_in") else {"namespaces": nsmap}


def _listed(blocks: Iterator[Block]) -> Iterator[Block]:
    """Items that follow each other as one list."""
    items: list[str] = []
    length = 0
    for block in blocks:
        if block.kind == "list" and length < TABLE:
            items.append(block.text)
            length += len(block.text)
            continue
        if items:
            yield Block("list", "\n".join(items))
        items, length = ([block.text], len(block.text)) if block.kind == "list" else ([], 0)
        if block.kind != "list":
            yield block
    if items:
        yield Block("list", "\n".join(items))

"""PPTX: a page for each slide, with its title as the heading, its lists, tables and notes."""

from collections.abc import Iterable, Iterator
from typing import Any

import pptx

from .document import Block, Document
from .pieces import table


def read(document: Document) -> Iterator[Block]:
    """Slides in their order; what a slide's notes say follows it."""
    slides = pptx.Presentation(document.file)
    document.title = slides.core_properties.title or None
    for number, slide in enumerate(slides.slides, start=1):
        title = slide.shapes.title
        if title is not None and title.text_frame.text.strip():
            yield Block("heading", " ".join(title.text_frame.text.split()), level=1, page=number)
        for shape in _flat(slide.shapes):
            if title is None or shape.shape_id != title.shape_id:
                yield from _shape(shape, number)
        if slide.has_notes_slide and slide.notes_slide.notes_text_frame is not None:
            yield Block("text", slide.notes_slide.notes_text_frame.text, page=number)


def _flat(shapes: Iterable[Any]) -> Iterator[Any]:
    """Shapes, those of groups too."""
    for shape in shapes:
        if hasattr(shape, "shapes"):
            yield from _flat(shape.shapes)
        else:
            yield shape


def _shape(shape: Any, number: int) -> Iterator[Block]:
    if getattr(shape, "has_table", False):
        rows = ([cell.text for cell in row.cells] for row in shape.table.rows)
        yield from table(rows, page=number)
    elif shape.has_text_frame:
        paragraphs = [each for each in shape.text_frame.paragraphs if each.text.strip()]
        if len(paragraphs) > 1:
            items = ("  " * each.level + f"- {each.text.strip()}" for each in paragraphs)
            yield Block("list", "\n".join(items), page=number)
        else:
            yield from (Block("text", each.text, page=number) for each in paragraphs)

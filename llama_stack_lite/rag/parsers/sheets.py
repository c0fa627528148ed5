"""XLSX: each sheet as a heading and its rows as tables."""

from collections.abc import Iterator
from datetime import datetime, time

import openpyxl

from .document import Block, Document
from .pieces import table


def read(document: Document) -> Iterator[Block]:
    """Values as they were when the file was saved, without formulas."""
    book = openpyxl.load_workbook(document.file, read_only=True, data_only=True, keep_links=False)
    document.title = book.properties.title or None
    for sheet in book.worksheets:
        sheet.reset_dimensions()  # what the file says of its size need not be so
        rows = ([_shown(value) for value in row] for row in sheet.iter_rows(values_only=True))
        blocks = table(rows)
        first = next(blocks, None)
        if first:
            yield Block("heading", sheet.title, level=1)
            yield first
            yield from blocks


def _shown(value: object) -> object:
    if isinstance(value, datetime) and value.time() == time():
        return value.date()
    return value

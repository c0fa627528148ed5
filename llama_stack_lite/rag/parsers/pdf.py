"""PDF: the text of its pages, with headings from its outline; pages that are pictures by the extra `ocr`."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from itertools import islice
from typing import Any

from pypdf import PageObject, PdfReader
from pypdf.errors import DependencyError, FileNotDecryptedError, PyPdfError, WrongPasswordError

from .document import Block, Document, Refused

Headings = dict[int, list[tuple[int, str]]]  # by page: levels and titles

# what pypdf raises over parts of a file without which its text can still be read
OCR = find_spec("rapidocr_onnxruntime") is not None
DAMAGED = (PyPdfError, ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError)
HYPHENS = ("-", "\u2010", "\u00ad")
ENTRIES = 20_000  # of an outline, which in a hostile file has no end
OFTEN = 0.6  # of the pages have a line at their top or end: it is no part of the text
NUMBER = re.compile(r"^[\divx]+(\.\d+)*\.?\s+(?=\S)")
ENCRYPTED = "it is encrypted: save it without a password"


def read(document: Document) -> Iterator[Block]:
    """The blocks of every page."""
    try:
        reader = PdfReader(document.file)
        if reader.is_encrypted and not reader.decrypt(""):
            raise Refused(ENCRYPTED)
        pages = _pages(reader, document)
    except (FileNotDecryptedError, WrongPasswordError) as error:
        raise Refused(ENCRYPTED) from error
    except DependencyError as error:
        raise Refused(f"it is encrypted or packed in a way that is not known here: {error}") from error
    with suppress(*DAMAGED):
        document.title = " ".join(str(reader.metadata["/Title"]).split()) if reader.metadata else None
    headings = _headings(reader)
    repeated = _repeated(pages)
    for number, lines in enumerate(pages, start=1):
        ends = {0, len(lines) - 1}
        kept = [line for at, line in enumerate(lines) if at not in ends or _shape(line) not in repeated]
        yield from _blocks(kept, headings.get(number, []), number)


def _pages(reader: PdfReader, document: Document) -> list[list[str]]:
    """The lines of every page that say anything."""
    pages: list[list[str]] = []
    length = 0
    pictured = False
    for number, page in enumerate(reader.pages, start=1):
        try:
            text = page.extract_text()
            if not text.strip() and _has_pictures(page):
                pictured = True
                text = "\n".join(_seen(page))
        except DAMAGED as error:
            raise Refused(f"its page {number} is damaged ({type(error).__name__}: {error})") from error
        length += len(text)
        if length > document.limit:
            raise document.too_long()
        pages.append([line.rstrip() for line in text.split("\n") if line.strip()])
    if pictured and not any(pages) and not OCR:
        raise Refused("it has page images only: pip install 'llama-stack-lite[ocr]'", code="unsupported_file")
    return pages


def _has_pictures(page: PageObject) -> bool:
    return bool(page.images.keys())


def _seen(page: PageObject) -> Iterator[str]:
    """What the pictures of a page say."""
    if OCR:
        images = import_module(f"{__package__}.images")
        for picture in page.images:
            yield images.seen(picture.image)


def _headings(reader: PdfReader) -> Headings:
    """The entries of the outline, by the pages that they lead to."""
    found: Headings = defaultdict(list)
    with suppress(*DAMAGED):
        for level, entry in islice(_entries(reader.outline), ENTRIES):
            number = reader.get_destination_page_number(entry)
            title = " ".join(str(entry.title).split())
            if number is not None and title:
                found[number + 1].append((min(level, 6), title))
    return found


def _entries(outline: list[Any]) -> Iterator[tuple[int, Any]]:
    """Entries with their levels; those within an entry are a list that follows it."""
    ways = [iter(outline)]
    while ways:
        entry = next(ways[-1], None)
        if entry is None:
            ways.pop()
        elif isinstance(entry, list):
            ways.append(iter(entry))
        else:
            yield len(ways), entry


def _shape(line: str) -> str:
    """A line but for its numbers: that of a page is another each time."""
    return re.sub(r"\d+", "0", line.strip())


def _repeated(pages: list[list[str]]) -> set[str]:
    """The first and last lines that most pages have."""
    counts = Counter(shape for page in pages if page for shape in {_shape(page[0]), _shape(page[-1])})
    return {shape for shape, count in counts.items() if count >= max(3, OFTEN * len(pages))}


def _blocks(lines: list[str], headings: list[tuple[int, str]], page: int) -> Iterator[Block]:
    """Paragraphs and headings; a heading that no line says stands at the top."""
    places: dict[int, tuple[int, str]] = {}
    start = 0
    for level, title in headings:
        at = next((at for at in range(start, len(lines)) if _same(lines[at], title)), None)
        if at is None:
            yield Block("heading", title, level=level, page=page)
        else:
            places[at], start = (level, title), at + 1
    start = 0
    for at in [*sorted(places), len(lines)]:
        for paragraph in _paragraphs(lines[start:at]):
            yield Block("text", paragraph, page=page)
        if at in places:
            yield Block("heading", lines[at].strip(), level=places[at][0], page=page)
        start = at + 1


def _same(line: str, title: str) -> bool:
    """Whether a line is a heading, numbered or not."""
    plain, wanted = " ".join(line.split()).casefold(), title.casefold()
    return plain == wanted or NUMBER.sub("", plain) == NUMBER.sub("", wanted)


def _paragraphs(lines: list[str]) -> Iterator[str]:
    """Lines that run on as one; a short line that ends a sentence ends a paragraph."""
    full = 0.75 * max(map(len, lines), default=0)
    text = ""
    for line in lines:
        line = line.strip()
        if text.endswith(HYPHENS) and text[-2:-1].islower() and line[:1].islower():
            text = text[:-1] + line
        else:
            text = f"{text}\n{line}" if text else line
        if len(line) < full and line.endswith((".", "!", "?", ":")):
            yield text
            text = ""
    if text:
        yield text

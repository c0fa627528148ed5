"""Which reader a document is for: told by its content first, and by its name where that leaves it open."""

import gzip
import mmap
import re
import zipfile
import zlib
from io import BytesIO

from .document import Document, Refused, size

SOURCES = """
adb ads asm awk bash bat c cc cfg clj cmake cpp cs css cxx d dart el erl ex exs f f90 fish fs go gradle groovy
h hh hpp hs ini java jl js jsx kt kts less lisp lua m mk ml mjs nim nix pas php pl pm proto ps1 py pyi
pyx r rb rs sass scala scm scss sh sql swift tcl tf toml ts tsx v vb vhd vim vue zig zsh
"""
READERS = {
    **dict.fromkeys(SOURCES.split(), "code"),
    **dict.fromkeys(("md", "markdown", "mdx", "mkd"), "markdown"),
    **dict.fromkeys(("htm", "html", "xhtml"), "web"),
    **dict.fromkeys(("docbook", "svg", "xml", "xsd", "xsl"), "xml"),
    **dict.fromkeys(("csv", "tab", "tsv"), "tables"),
    **dict.fromkeys(("json", "ipynb", "jsonl", "ndjson", "yaml", "yml"), "data"),
    **dict.fromkeys(("rst", "rest"), "text"),
    "eml": "mail",
}
PARTS = {"word/document.xml": "word", "ppt/presentation.xml": "slides", "xl/workbook.xml": "sheets"}
IMAGES = (b"\x89PNG\r\n", b"\xff\xd8\xff", b"II*\0", b"MM\0*", b"BM")
# (?>: comments are taken once, not in every way that they could be taken together
HTML = re.compile(rb"\s*(<\?xml[^>]*>\s*)?(?><!--.*?-->\s*)*<(!doctype\s+html|html)\b", re.I | re.S)
NEITHER = (
    "it is neither text nor a kind of document that can be read: PDF, DOCX, PPTX, XLSX, HTML, Markdown and "
    "other text; with the extra `ocr` images too"
)
UNPACKED = 4  # times the limit of text: what the parts of an Office document may have, markup included


def reader(document: Document) -> str:
    """The module of this package that reads it; raises `Refused`."""
    start = document.start
    if b"%PDF-" in start[:1024]:
        return "pdf"
    if start.startswith(b"PK\x03\x04"):
        return _office(document)
    if start.startswith(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"):
        raise _old_office(document)
    if start.startswith(IMAGES) or (start.startswith(b"RIFF") and start[8:12] == b"WEBP"):
        return "images"
    if not document.is_text():
        raise Refused(NEITHER, code="unsupported_file")
    return _text(document)


def _text(document: Document) -> str:
    start = document.start
    if start.startswith(b"{\\rtf"):
        raise Refused("it is RTF: save it as DOCX or PDF", code="unsupported_file")
    if HTML.match(start[:4096]):
        return "web"
    if start.startswith(b"<?xml"):
        return "xml"
    return READERS.get(document.suffix) or ("code" if start.startswith(b"#!") else "text")


def _office(document: Document) -> str:
    try:
        with zipfile.ZipFile(document.file) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError) as error:
        raise Refused(f"it is a damaged Office document or archive: {error}") from error
    names = {entry.filename for entry in entries}
    found = [module for part, module in PARTS.items() if part in names]
    if not found:
        raise Refused("it is an archive: unpack it, and add its files", code="unsupported_file")
    # no more than is declared is ever unpacked of a part
    if sum(entry.file_size for entry in entries) > UNPACKED * document.limit:
        raise Refused(f"it unpacks to more than {size(UNPACKED * document.limit)}")
    return found[0]


def _old_office(document: Document) -> Refused:
    with mmap.mmap(document.file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        encrypted = data.find("EncryptedPackage".encode("utf-16-le")) >= 0
    if encrypted:
        return Refused("it is encrypted: save it without a password")
    return Refused(
        "it is a file of an old Office (.doc, .xls, .ppt): save it as .docx, .xlsx or .pptx",
        code="unsupported_file",
    )


def unzipped(document: Document, name: str) -> Document:
    """What a file packed by gzip holds; other documents as they are."""
    if not document.start.startswith(b"\x1f\x8b"):
        return document
    document.file.seek(0)
    try:
        with gzip.GzipFile(fileobj=document.file) as packed:
            data = packed.read(document.limit + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise Refused(f"it is packed by gzip, and damaged: {error}") from error
    if len(data) > document.limit:
        raise document.too_long()
    return Document(BytesIO(data), name.removesuffix(".gz"), limit=document.limit)

"""Real documents, and such as hurt those who read them."""

import io
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import docx
import openpyxl
import pptx
from PIL import Image, ImageDraw, ImageFont
from pypdf import PdfReader, PdfWriter
from pypdf.generic import DictionaryObject, NameObject

CONTENT_TYPES = "[Content_Types].xml"
BILLION = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 11))
LAUGHS = f'<!DOCTYPE x [<!ENTITY l0 "lol">{BILLION}]>'  # ten thousand million, by entities


def _stream(data: bytes, more: str = "") -> bytes:
    return b"<< /Length %d %s >>\nstream\n%s\nendstream" % (len(data), more.encode(), data)


def _numbered(objects: Mapping[int, bytes], *, root: int = 1, info: int | None = None) -> bytes:
    """A PDF file of these objects."""
    out = bytearray(b"%PDF-1.4\n")
    places = {}
    for number, value in objects.items():
        places[number] = len(out)
        out += b"%d 0 obj\n%s\nendobj\n" % (number, value)
    start = len(out)
    count = max(objects) + 1
    out += b"xref\n0 %d\n0000000000 65535 f \n" % count
    for number in range(1, count):
        out += b"%010d 00000 n \n" % places[number] if number in places else b"0000000000 65535 f \n"
    said = f" /Info {info} 0 R" if info else ""
    out += f"trailer\n<< /Size {count} /Root {root} 0 R{said} >>\nstartxref\n{start}\n%%EOF\n".encode()
    return bytes(out)


def _escaped(line: str) -> str:
    return line.replace("\\", "\\\\").replace("(", "\\(").replace(")", "\\)")


def pdf(*pages: Iterable[str], title: str = "", packed: bytes | None = None) -> bytes:
    """Pages of lines, in Helvetica; `packed`, if given, is what the first page's stream unpacks from."""
    objects = {
        1: b"<< /Type /Catalog /Pages 2 0 R >>",
        3: b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>",
        4: f"<< /Title ({_escaped(title)}) >>".encode(),
    }
    kids: list[str] = []
    for lines in pages:
        number = 5 + 2 * len(kids)
        shown = "".join(f"({_escaped(line)}) Tj T*\n" for line in lines)
        data = zlib.compress(f"BT /F1 12 Tf 14 TL 72 720 Td\n{shown}ET".encode("cp1252"))
        objects[number] = (
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents {number + 1} 0 R "
            "/Resources << /Font << /F1 3 0 R >> >> >>"
        ).encode()
        objects[number + 1] = _stream(packed if packed and not kids else data, "/Filter /FlateDecode")
        kids.append(f"{number} 0 R")
    objects[2] = f"<< /Type /Pages /Kids [{' '.join(kids)}] /Count {len(kids)} >>".encode()
    return _numbered(objects, info=4)


def endless_pdf() -> bytes:
    """A PDF whose tree of pages leads back to itself."""
    return _numbered(
        {
            1: b"<< /Type /Catalog /Pages 2 0 R >>",
            2: b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
            3: b"<< /Type /Pages /Parent 2 0 R /Kids [2 0 R 3 0 R] /Count 1 >>",
        }
    )


def outlined(data: bytes, entries: Iterable[tuple[str, int, bool]]) -> bytes:
    """A PDF with an outline: titles, pages from 1, whether an entry is under the last that is not."""
    writer = PdfWriter(PdfReader(io.BytesIO(data)))
    above = None
    for title, page, under in entries:
        entry = writer.add_outline_item(title=title, page_number=page - 1, parent=above if under else None)
        above = above if under else entry
    return _written(writer)


def looping_outline() -> bytes:
    """A PDF with text whose outline has no end."""
    writer = PdfWriter(PdfReader(io.BytesIO(outlined(pdf(["Said all the same."]), [("One", 1, False)]))))
    outline = writer.root_object["/Outlines"].get_object()
    assert isinstance(outline, DictionaryObject)
    entry = outline["/First"].get_object()
    assert isinstance(entry, DictionaryObject)
    entry[NameObject("/Next")] = outline.raw_get("/First")
    return _written(writer)


def encrypted(data: bytes, password: str, *, algorithm: str = "AES-256") -> bytes:
    """A PDF that opens with a password, which may be empty."""
    writer = PdfWriter(PdfReader(io.BytesIO(data)))
    writer.encrypt(password, "owner's own", algorithm=algorithm)
    return _written(writer)


def _written(writer: PdfWriter) -> bytes:
    out = io.BytesIO()
    writer.write(out)
    return out.getvalue()


def picture(*lines: str, width: int = 900) -> Image.Image:
    """A picture of lines of text."""
    image = Image.new("RGB", (width, 90 + 60 * len(lines)), "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(36)
    for number, line in enumerate(lines):
        draw.text((40, 40 + 60 * number), line, fill="black", font=font)
    return image


def pictured(image: Image.Image, kind: str) -> bytes:
    """A picture as a file; a PDF has it as its page."""
    out = io.BytesIO()
    image.save(out, format=kind)
    return out.getvalue()


def word_file() -> bytes:
    """A DOCX with headings, paragraphs, a list and a table between them."""
    word = docx.Document()
    word.core_properties.title = "Pumps of the plant"
    word.add_heading("Pumps", level=1)
    word.add_paragraph("Every pump has a valve before it.")
    word.add_heading("Service", level=2)
    word.add_paragraph("Close the valve.", style="List Bullet")
    word.add_paragraph("Drain the pump.", style="List Bullet")
    table = word.add_table(rows=2, cols=2)
    for cell, text in zip(
        [*table.rows[0].cells, *table.rows[1].cells], ["Pump", "Bar", "P-7", "16"], strict=True
    ):
        cell.text = text
    word.add_paragraph("Open the valve again.")
    return _saved(word)


def slide_file() -> bytes:
    """A PPTX of two slides, the second with a table and notes."""
    slides = pptx.Presentation()
    first = slides.slides.add_slide(slides.slide_layouts[1])
    first.shapes.title.text = "Results of spring"
    first.placeholders[1].text = "More pumps sold\nFewer came back"
    second = slides.slides.add_slide(slides.slide_layouts[5])
    second.shapes.title.text = "By country"
    table = second.shapes.add_table(2, 2, 0, 0, 5_000_000, 1_000_000).table
    for place, text in enumerate(["Country", "Pumps", "Norway", "12"]):
        table.cell(place // 2, place % 2).text = text
    second.notes_slide.notes_text_frame.text = "Say that Norway doubled."
    return _saved(slides)


def sheet_file(rows: int = 3, *, note: str = "shelf") -> bytes:
    """An XLSX of two sheets, one of them empty."""
    book = openpyxl.Workbook()
    sheet = book.active
    sheet.title = "Stock"
    sheet.append(["Part", "Count", "Note"])
    for number in range(rows):
        sheet.append([f"part-{number}", number, f"{note} {number % 7}"])
    book.create_sheet("Nothing")
    return _saved(book)


def _saved(document: object) -> bytes:
    out = io.BytesIO()
    document.save(out)  # type: ignore[attr-defined]
    return out.getvalue()


def zipped(parts: Mapping[str, bytes]) -> bytes:
    """A zip of these parts."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return out.getvalue()


def changed(data: bytes, parts: Mapping[str, bytes]) -> bytes:
    """A zip with some parts replaced or added."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as new:
        for name in [*old.namelist(), *(name for name in parts if name not in old.namelist())]:
            new.writestr(name, parts[name] if name in parts else old.read(name))
    return out.getvalue()


def zip_bomb(path: Path, member: str, *, megabytes: int) -> None:
    """A file of nothing but zeros that unpacks to a thousand times its size."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(CONTENT_TYPES, "<Types/>")
        with archive.open(member, "w", force_zip64=True) as part:
            for _ in range(megabytes):
                part.write(bytes(1024 * 1024))


def lying_zip(data: bytes, member: str, declared: int) -> bytes:
    """A zip whose directory says that a member is smaller than it is."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        actual = archive.getinfo(member).file_size.to_bytes(4, "little")
        place = archive.start_dir
    found = data.find(member.encode(), place) - 46 + 24
    assert data[found : found + 4] == actual
    return data[:found] + declared.to_bytes(4, "little") + data[found + 4 :]


def encrypted_office() -> bytes:
    """The start of an Office document with a password: an OLE file that holds an encrypted package."""
    names = "".join(name.ljust(32, "\0") for name in ("Root Entry", "EncryptionInfo", "EncryptedPackage"))
    return b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(504) + names.encode("utf-16-le") + bytes(1024)

"""Documents are read by what they are, in children that no document can make hurt anybody."""

import asyncio
import gzip
import json
import os
import re
import subprocess
import sys
import time
import zlib
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from llama_stack_lite.config.sections import Documents
from llama_stack_lite.errors import Unavailable
from llama_stack_lite.rag.parsers.__main__ import FILES
from llama_stack_lite.rag.parsing import Block, Parsed, Parsers, Unreadable
from tests.support import documents as made

ROOT = Path(__file__).parent.parent
MEGABYTE = 1024 * 1024
Reading = Callable[[bytes | str, str], Parsed]


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def parsers(runner: asyncio.Runner) -> Iterator[Parsers]:
    """A warm pool that most tests share, as files do in a server."""
    parsers = Parsers(Documents(workers=1))
    yield parsers
    runner.run(parsers.aclose())


@pytest.fixture
def reading(runner: asyncio.Runner, parsers: Parsers, tmp_path: Path) -> Reading:
    def read(content: bytes | str, name: str) -> Parsed:
        path = tmp_path / "blob"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return runner.run(parsers.parsed(path, name))

    return read


def blocks(parsed: Parsed) -> list[tuple[str, int, str]]:
    return [(block.kind, block.level, block.text) for block in parsed.blocks]


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text)


def said(parsed: Parsed) -> list[str]:
    return words("\n".join(block.text for block in parsed.blocks))


# what documents say


def test_markdown(reading: Reading) -> None:
    source = """---
title: "Pumps, and how"
---
# Pumps #

Every *pump* has a [valve](https://example.org/v).

Service
-------

- Close the valve
  - slowly

```python
# no heading

x = 1
```

| Pump | Bar |
|------|-----|
| P-7  | 16  |

> ## quoted
"""
    parsed = reading(source, "pumps.md")
    assert parsed.title == "Pumps, and how"
    assert blocks(parsed) == [
        ("code", 0, 'title: "Pumps, and how"'),
        ("heading", 1, "Pumps"),
        ("text", 0, "Every *pump* has a [valve](https://example.org/v)."),
        ("heading", 2, "Service"),
        ("list", 0, "- Close the valve\n  - slowly"),
        ("code", 0, "```python\n# no heading\n\nx = 1\n```"),
        ("table", 0, "| Pump | Bar |\n|------|-----|\n| P-7  | 16  |"),
        ("text", 0, "> ## quoted"),
    ]


@pytest.mark.parametrize(
    "page", [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")], ids=lambda page: page.name
)
def test_no_word_of_markdown_is_lost(reading: Reading, page: Path) -> None:
    source = page.read_text(encoding="utf-8")
    assert said(reading(source, page.name)) == words(source)


def test_plain_text_and_restructured_text(reading: Reading) -> None:
    source = "=====\nPumps\n=====\n\nFirst.\nSecond.\n\nHow\n---\nLike this::\n\n"
    source += "    turn(1)\n\n    turn(2)\n\nDone.\n"
    parsed = reading(source.replace("\n", "\r\n"), "pumps.rst")
    assert parsed.title == "Pumps"
    assert blocks(parsed) == [
        ("heading", 1, "Pumps"),
        ("text", 0, "First.\nSecond."),
        ("heading", 2, "How"),
        ("text", 0, "Like this::"),
        ("code", 0, "    turn(1)"),
        ("code", 0, "    turn(2)"),
        ("text", 0, "Done."),
    ]


@pytest.mark.parametrize("page", sorted(Path("/usr/share/doc").glob("*/copyright"))[:40], ids=str)
def test_no_word_of_plain_text_is_lost(reading: Reading, page: Path) -> None:
    source = page.read_text(encoding="utf-8")
    marks = re.sub(r"^\s*([=\-~^\"'`#*+.:_])\1{2,}\s*$", "", source, flags=re.M)
    assert said(reading(source, "copyright")) == words(marks)


HTML = """<!doctype html><html><head><title>Pumps
 and how</title><style>p {}</style><script>var hidden</script></head><body>
<header><h1>Pumps<a class="headerlink" href="#p">¶</a></h1></header>
<p>Every <b>pump</b> has<br>a&nbsp;valve. <!-- no --></p>
<h3>Service</h3><ul><li>Close<ul><li>slowly</li></ul></li><li><p>Drain</p><pre>x  =
  1</pre></li><li>Open</li></ul>
<table><caption>Known</caption><tr><th>Pump</th><th>Bar</th></tr><tr><td>P-7</td><td><p>16</p></td></tr></table>
<table><tr><td><h3>Laid out</h3>by a table</td></tr></table><dl><dt>term</dt><dd>meaning</dd></dl>
</body></html>"""


def test_html(reading: Reading) -> None:
    parsed = reading(HTML, "pumps")
    assert parsed.title == "Pumps and how"
    assert blocks(parsed) == [
        ("heading", 1, "Pumps"),
        ("text", 0, "Every pump has\na valve."),
        ("heading", 3, "Service"),
        ("list", 0, "- Close\n  - slowly\n- Drain"),
        ("code", 0, "x  =\n  1"),
        ("list", 0, "- Open"),
        ("text", 0, "Known"),
        ("table", 0, "| Pump | Bar |\n| P-7 | 16 |"),
        ("heading", 3, "Laid out"),
        ("text", 0, "by a table"),
        ("text", 0, "term"),
        ("text", 0, "meaning"),
    ]


def test_html_leaves_out_what_stands_around(reading: Reading) -> None:
    """By `<main>` where there is one, else by trafilatura."""
    links = "".join(f'<li><a href="/{n}">Some other page {n}</a></li>' for n in range(40))
    sentence = "A pump moves a fluid by mechanical action, typically converted from electrical energy. "
    content = f"<h1>Pumps</h1><p>{sentence * 5}</p><h2>Kinds</h2><p>{sentence * 6}</p>"
    content += "<pre><code>turn(1)\nturn(2)</code></pre><ul><li>Rotary ones</li><li>Screws</li></ul>"
    for page in (f"<ul>{links}</ul><main>{content}</main>", f"<ul>{links}</ul><div id=x>{content}</div>"):
        parsed = reading(f"<html><body>{page}<p>Imprint</p></body></html>", "page.html")
        text = "\n".join(block.text for block in parsed.blocks)
        assert "other page" not in text
        assert text.count("mechanical action") == 11
        assert ("code", 0, "turn(1)\nturn(2)") in blocks(parsed)
        assert [block.text for block in parsed.blocks if block.kind == "heading"] == ["Pumps", "Kinds"]


@pytest.mark.parametrize("charset", ["iso-8859-2", "koi8-r", "utf-16", "utf-8-sig", "shift_jis"])
def test_html_in_the_encoding_that_it_declares(reading: Reading, charset: str) -> None:
    text = {"iso-8859-2": "žluťoučký kůň", "koi8-r": "насос", "shift_jis": "ポンプ"}.get(
        charset, "Größe ポンプ"
    )
    page = f'<html><head><meta charset="{charset}"></head><body><p>{text}</p></body></html>'
    assert blocks(reading(page.encode(charset), "a.html")) == [("text", 0, text)]


@pytest.mark.parametrize(
    "charset", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252"]
)
def test_text_in_any_encoding(reading: Reading, charset: str) -> None:
    assert blocks(reading("Größe “16 €”\n".encode(charset), "a.txt")) == [("text", 0, "Größe “16 €”")]


def test_pdf(reading: Reading) -> None:
    pages = [
        [
            "Plant handbook",
            "1 Pumps",
            "Every pump of this plant has a valve before it, which is exam-",
            "ined yearly.",
        ],
        ["Plant handbook", "More of pumps."],
        ["Plant handbook", "Service", "Close the valve (slowly)."],
    ]
    data = made.outlined(
        made.pdf(*pages, title="The plant"), [("Pumps", 1, False), ("Service", 3, True), ("Unsaid", 3, True)]
    )
    parsed = reading(data, "plant")
    assert parsed.title in ("The plant", "Pumps", None)
    assert parsed.blocks == [
        Block("heading", "1 Pumps", level=1, page=1),
        Block("text", "Every pump of this plant has a valve before it, which is examined yearly.", page=1),
        Block("text", "More of pumps.", page=2),
        Block("heading", "Unsaid", level=2, page=3),
        Block("heading", "Service", level=2, page=3),
        Block("text", "Close the valve (slowly).", page=3),
    ]


@pytest.mark.parametrize("algorithm", ["RC4-128", "AES-256"])
def test_pdf_with_an_empty_password(reading: Reading, algorithm: str) -> None:
    data = made.encrypted(made.pdf(["Open to all."]), "", algorithm=algorithm)
    assert reading(data, "a.pdf").blocks == [Block("text", "Open to all.", page=1)]


def test_word(reading: Reading) -> None:
    parsed = reading(made.word_file(), "pumps.docx")
    assert parsed.title == "Pumps of the plant"
    assert blocks(parsed) == [
        ("heading", 1, "Pumps"),
        ("text", 0, "Every pump has a valve before it."),
        ("heading", 2, "Service"),
        ("list", 0, "- Close the valve.\n- Drain the pump."),
        ("table", 0, "| Pump | Bar |\n| P-7 | 16 |"),
        ("text", 0, "Open the valve again."),
    ]


def test_slides(reading: Reading) -> None:
    assert reading(made.slide_file(), "spring.pptx").blocks == [
        Block("heading", "Results of spring", level=1, page=1),
        Block("list", "- More pumps sold\n- Fewer came back", page=1),
        Block("heading", "By country", level=1, page=2),
        Block("table", "| Country | Pumps |\n| Norway | 12 |", page=2),
        Block("text", "Say that Norway doubled.", page=2),
    ]


def test_sheets_repeat_their_header(reading: Reading) -> None:
    heading, *tables = reading(made.sheet_file(500), "stock.xlsx").blocks
    assert heading == Block("heading", "Stock", level=1)
    assert len(tables) > 2
    rows = [line for table in tables for line in table.text.split("\n")[1:]]
    assert rows == [f"| part-{n} | {n} | shelf {n % 7} |" for n in range(500)]
    assert all(
        table.kind == "table" and table.text.startswith("| Part | Count | Note |\n") for table in tables
    )


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_separated_values(reading: Reading, separator: str) -> None:
    lines = [["Part", "Note"], ["p 1", '"two\nlines, and; more|"'], ["p 2", ""], ["", ""], ["p 3", "x"]]
    parsed = reading("\n".join(map(separator.join, lines)), "stock.csv")
    table = "| Part | Note |\n| p 1 | two lines, and; more| |\n| p 2 |\n| p 3 | x |"
    assert blocks(parsed) == [("table", 0, table)]


def test_json_in_pieces(reading: Reading) -> None:
    value = {"name": "pumps", "parts": [{"id": n, "note": "ä" * 50} for n in range(200)]}
    parsed = reading(json.dumps(value), "parts.json")
    assert {block.kind for block in parsed.blocks} == {"code"}
    assert parsed.blocks[0].text.startswith('name: "pumps"\nparts: {\n "id": 0,')
    assert [int(n) for n in re.findall(r'"id": (\d+)', "".join(b.text for b in parsed.blocks))] == list(
        range(200)
    )
    assert max(len(block.text) for block in parsed.blocks) <= 2000


@pytest.mark.parametrize(
    ("name", "source", "parts"),
    [
        ("a.jsonl", '{"a": 1}\n{"a": 2}\n', ['{"a": 1}\n{"a": 2}']),
        ("a.json", "{a: 1} // not quite", ["{a: 1} // not quite"]),
        ("a.yaml", "a: &x [1]\nb:\n  - *x\n", ["a: &x [1]\nb:\n  - *x"]),
        ("a.toml", "[a]\nb = 1\n\n\n[c]\n", ["[a]\nb = 1\n\n[c]"]),
        ("run", "#!/bin/sh\necho\n", ["#!/bin/sh\necho"]),
    ],
)
def test_data_and_settings(reading: Reading, name: str, source: str, parts: list[str]) -> None:
    assert blocks(reading(source, name)) == [("code", 0, part) for part in parts]


def test_source_code_is_cut_between_definitions(reading: Reading) -> None:
    source = Path(json.__file__).with_name("decoder.py").read_text(encoding="utf-8")
    parsed = reading(source, "decoder.py")
    assert said(parsed) == words(source)
    assert {block.kind for block in parsed.blocks} == {"code"}
    starts = [block.text.split("\n")[0] for block in parsed.blocks]
    assert any(start.startswith("class JSONDecoder(") for start in starts)
    assert not any(start.startswith(" ") for start in starts)


def test_notebook_and_mail(reading: Reading) -> None:
    cells = [{"cell_type": "markdown", "source": ["## Pumps"]}, {"cell_type": "code", "source": "turn(1)"}]
    notebook = reading(json.dumps({"nbformat": 4, "cells": cells}), "a.ipynb")
    assert blocks(notebook) == [("heading", 2, "Pumps"), ("code", 0, "turn(1)")]
    mail = "From: a@example.org\nSubject: Pumps\nContent-Type: text/html\n\n<p>They <i>leak</i>.</p>\n"
    parsed = reading(mail, "a.eml")
    assert parsed.title == "Pumps"
    assert blocks(parsed) == [("text", 0, "From: a@example.org\nSubject: Pumps"), ("text", 0, "They leak.")]


def test_content_goes_before_names(reading: Reading) -> None:
    assert reading(made.pdf(["I am a PDF."]), "a.txt").blocks[0].page == 1
    assert blocks(reading(made.word_file(), "a.pdf"))[0] == ("heading", 1, "Pumps")
    assert blocks(reading("I am text.", "a.docx")) == [("text", 0, "I am text.")]
    assert blocks(reading("<html><body><p>I am a page.", "a.txt")) == [("text", 0, "I am a page.")]
    packed = gzip.compress(b"# Packed\n")
    assert blocks(reading(packed, "README.md.gz")) == [("heading", 1, "Packed")]


@pytest.mark.slow
def test_pictures_are_read(reading: Reading) -> None:
    """Also those that are the pages of a PDF."""
    image = made.picture("The pump needs a valve", "or it freezes")
    for kind, page in (("PNG", None), ("WEBP", None), ("PDF", 1)):
        (block,) = reading(made.pictured(image, kind), "scan").blocks
        assert block.text.replace(" ", "") == "Thepumpneedsavalve\noritfreezes"  # spaces it may take for none
        assert block.page == page


def test_pictures_without_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    absent = "import sys\nsys.modules['rapidocr_onnxruntime'] = None\n"
    (tmp_path / "sitecustomize.py").write_text(absent, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    path = tmp_path / "blob"

    async def work(parsers: Parsers) -> None:
        for kind in ("PNG", "PDF"):
            path.write_bytes(made.pictured(made.picture("Pumps"), kind))
            with pytest.raises(Unreadable, match=r"pip install 'llama-stack-lite\[ocr\]'") as caught:
                await parsers.parsed(path, "scan")
            assert caught.value.code == "unsupported_file"

    with_parsers(work)


# what hurts


def refusal(reading: Reading, content: bytes | str, name: str) -> Unreadable:
    with pytest.raises(Unreadable) as caught:
        reading(content, name)
    return caught.value


HOSTILE: dict[str, tuple[bytes, str, str]] = {
    "empty": (b"", "invalid_file", "it holds no text"),
    "blank": (b" \n\t\n", "invalid_file", "it holds no text"),
    "zeros": (bytes(5000), "unsupported_file", "neither text nor"),
    "program": (Path(sys.executable).read_bytes()[:200_000], "unsupported_file", "neither text nor"),
    "archive": (
        made.changed(made.word_file(), {})[:0] or b"PK\x05\x06" + bytes(18),
        "unsupported_file",
        "neither",
    ),
    "rtf": (rb"{\rtf1 Pumps}", "unsupported_file", "RTF"),
    "encrypted PDF": (made.encrypted(made.pdf(["Secret."]), "key"), "invalid_file", "it is encrypted"),
    "encrypted DOCX": (made.encrypted_office(), "invalid_file", "it is encrypted"),
    "old Office": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(2000), "unsupported_file", "old Office"),
    "cut PDF": (made.pdf(["Pumps."])[:300], "invalid_file", "damaged"),
    "garbage PDF": (b"%PDF-1.7\n" + bytes(range(256)) * 40, "invalid_file", "damaged"),
    "lying PDF": (
        re.sub(rb"/Length \d+", b"/Length 999999999999", made.pdf(["Pumps."])),
        "invalid_file",
        "damaged",
    ),
    "endless PDF": (made.endless_pdf(), "invalid_file", "damaged"),
    "cut DOCX": (made.word_file()[:-500], "invalid_file", "damaged"),
    "DOCX without its document": (
        made.changed(made.word_file(), {"word/document.xml": b""}),
        "invalid_file",
        "damaged",
    ),
    "lying DOCX": (made.lying_zip(made.word_file(), "word/document.xml", 100), "invalid_file", "damaged"),
    "cut gzip": (gzip.compress(b"pumps " * 1000)[:-30], "invalid_file", "packed by gzip"),
    "deep JSON": (b"[" * 200_000 + b"]" * 200_000, "invalid_file", "nested too deeply"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_bad_files_fail_with_their_reasons(reading: Reading, case: str) -> None:
    content, code, reason = HOSTILE[case]
    name = "a.json" if "JSON" in case else "a.bin"
    error = refusal(reading, content, name)
    assert (error.code, error.status) == (code, 400)
    assert reason in str(error)


def test_a_lost_table_and_a_looping_outline_do_no_harm(reading: Reading) -> None:
    data = made.pdf(["Said all the same."])
    for each in (re.sub(rb"startxref\n\d+", b"startxref\n7", data), made.looping_outline()):
        assert said(reading(each, "a.pdf"))[-4:] == words("Said all the same.")


def test_entities_do_not_multiply(reading: Reading) -> None:
    """A few hundred bytes that would be thirty thousand million, in every kind that is XML within."""
    laughs = f"<?xml version='1.0'?>{made.LAUGHS}".encode()
    svg = reading(laughs + b"<x><t>Pumps</t><t>&l10;</t></x>", "a.svg")
    assert "Pumps" in said(svg)
    assert len(said(svg)) < 10
    page = reading(f"{made.LAUGHS}<html><body><p>Pumps &l10;</p></body></html>", "a.html")
    assert len(said(page)) < 400
    main = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
    body = "<w:body><w:p><w:r><w:t>Pumps &l10;</w:t></w:r></w:p></w:body>"
    body = f"<w:document xmlns:w='{main}'>{body}</w:document>"
    word = made.changed(made.word_file(), {"word/document.xml": laughs + body.encode()})
    sheet = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
    cell = "<sheetData><row><c t='str'><v>&l10;</v></c></row></sheetData>"
    cell = f"<worksheet xmlns='{sheet}'>{cell}</worksheet>"
    book = made.changed(made.sheet_file(), {"xl/worksheets/sheet1.xml": laughs + cell.encode()})
    for content, name in ((word, "a.docx"), (book, "a.xlsx")):
        try:
            assert len(said(reading(content, name))) < 100
        except Unreadable as error:
            assert "damaged" in str(error)


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("brackets.md", "[" * MEGABYTE),
        ("stars.md", "*" * MEGABYTE),
        ("quotes.md", "> " * 50_000 + "x"),
        ("lists.md", "* " * 50_000 + "x"),
        ("ticks.md", "`" * MEGABYTE),
        ("pipes.md", "|" * 100_000 + "\n" + "|-" * 50_000),
        ("line.txt", "pump " * 400_000),
        ("page.html", "<div>" * 100_000 + "pump"),
        ("lists.html", "<ul><li>" * 100_000 + "pump"),
        ("tables.html", "<table><tr><td>" * 20_000 + "pump"),
        ("field.csv", '"' + "pump " * 400_000 + '"'),
        ("comments.txt", "<!---->" * 500 + "pump"),
        ("open.html", "<!--" * 100_000 + "<p>pump"),
    ],
)
def test_nothing_takes_long(reading: Reading, name: str, source: str) -> None:
    began = time.monotonic()
    try:
        parsed = reading(source, name)
    except Unreadable as error:
        assert error.code == "invalid_file"
    else:
        assert max(len(block.text) for block in parsed.blocks) <= 100_000
    assert time.monotonic() - began < 60


def resident() -> int:
    """Bytes of memory that this process has."""
    return int(Path("/proc/self/statm").read_text("utf-8").split()[1]) * os.sysconf("SC_PAGESIZE")


async def reason(parsers: Parsers, path: Path, name: str) -> str:
    """Why a file cannot be read; the server, which is this process, grows by nothing meanwhile."""
    before = highest = resident()

    async def watch() -> None:
        nonlocal highest
        while True:
            highest = max(highest, resident())
            await asyncio.sleep(0.005)

    watching = asyncio.create_task(watch())
    try:
        with pytest.raises(Unreadable) as caught:
            await parsers.parsed(path, name)
    finally:
        watching.cancel()
    assert highest - before < 20 * MEGABYTE
    return str(caught.value)


def with_parsers(work: Callable[[Parsers], Awaitable[None]], **limits: float) -> None:
    async def run() -> None:
        parsers = Parsers(Documents.model_validate({"workers": 1, **limits}))
        try:
            await work(parsers)
        finally:
            await parsers.aclose()

    asyncio.run(run())


def test_files_of_a_gigabyte(tmp_path: Path) -> None:
    """Text that is too much, and small files that unpack to it: known before they are read."""
    text, word, sheet, packed = (tmp_path / name for name in ("text", "word", "sheet", "packed"))
    with text.open("wb") as file:
        file.write(b"pump " * 20_000)
        file.truncate(1024 * MEGABYTE)
    made.zip_bomb(word, "word/document.xml", megabytes=40)
    made.zip_bomb(sheet, "xl/workbook.xml", megabytes=40)
    packed.write_bytes(gzip.compress(bytes(9 * MEGABYTE), 1) + bytes(10))

    async def work(parsers: Parsers) -> None:
        for path, name in (
            (text, "a.txt"),
            (text, "a.csv"),
            (text, "a.json"),
            (text, "a.html"),
            (packed, "a.gz"),
        ):
            assert "its text is more than 8 MB" in await reason(parsers, path, name)
        for path in (word, sheet):
            assert "it unpacks to more than 32 MB" in await reason(parsers, path, "a.docx")

    with_parsers(work, max_text_bytes=8 * MEGABYTE)


def test_text_that_grows_as_it_is_read(tmp_path: Path) -> None:
    """Whatever the format: the limit is of the text that comes out."""
    small = tmp_path / "small"

    async def work(parsers: Parsers) -> None:
        for content, name in (
            (b"pump\n\n" * 20_000, "a.txt"),  # many small blocks, which take more than their text
            (made.sheet_file(100, note="pump " * 3000), "a.xlsx"),
            (made.pdf(*[["pump " * 40] * 40] * 80), "a.pdf"),
        ):
            small.write_bytes(content)
            assert "its text is more than 512 kB" in await reason(parsers, small, name)

    with_parsers(work, max_text_bytes=512 * 1024)


def test_memory_is_bounded_and_the_next_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "blob"

    async def work(parsers: Parsers) -> None:
        for content, name in ((b"[" + b"[],\n" * 2_000_000 + b"[]]", "a.json"), (_wide_word(), "a.docx")):
            path.write_bytes(content)
            assert "it took more than 64 MB of memory to read" in await reason(parsers, path, name)
        path.write_text("Pumps.")
        assert (await parsers.parsed(path, "a.txt")).blocks == [Block("text", "Pumps.")]

    with_parsers(work, parse_memory=64 * MEGABYTE)


def _wide_word() -> bytes:
    """A DOCX whose document is twenty megabytes of empty paragraphs, and a hundred times less as a file."""
    main = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
    body = f"<w:document xmlns:w='{main}'><w:body>{'<w:p/>' * 3_000_000}</w:body></w:document>"
    return made.changed(made.word_file(), {"word/document.xml": body.encode()})


def test_time_is_bounded_and_others_are_read_meanwhile(tmp_path: Path) -> None:
    """A PDF that draws for hours: its own worker ends, of CPU time; files beside and after it are read."""
    slow, quick = tmp_path / "slow", tmp_path / "quick"
    slow.write_bytes(made.pdf([""], packed=drawing()))
    quick.write_text("Pumps.")

    async def work(parsers: Parsers) -> None:
        failing = asyncio.create_task(reason(parsers, slow, "a.pdf"))
        read = 0
        while not failing.done():
            assert (await parsers.parsed(quick, "a.txt")).blocks == [Block("text", "Pumps.")]
            read += 1
        assert "it took more than 2 s to read" in await failing
        assert read > 5

    with_parsers(work, parse_seconds=2, workers=2)


def drawing() -> bytes:
    """What a page is drawn by, for longer than anyone waits."""
    return zlib.compress(b"BT /F1 12 Tf " + b"(pump) Tj T* " * 2_000_000 + b"ET")


def test_a_child_that_hangs_is_killed_and_one_that_is_killed_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "blob"
    path.write_text("Pumps.")

    async def work(parsers: Parsers) -> None:
        await parsers.parsed(path, "a.txt")
        (child,) = parsers._children
        os.kill(child.process.pid, 19)  # stopped: it takes no CPU time, and never answers
        assert "it took more than 2 s to read" in await reason(parsers, path, "a.txt")
        await parsers.parsed(path, "a.txt")
        (child,) = parsers._children
        os.kill(child.process.pid, 19)
        asked = asyncio.create_task(reason(parsers, path, "a.txt"))
        await asyncio.sleep(0.1)
        os.kill(child.process.pid, 11)
        os.kill(child.process.pid, 18)
        assert "SIGSEGV" in await asked
        assert (await parsers.parsed(path, "a.txt")).blocks == [Block("text", "Pumps.")]

    with_parsers(work, parse_seconds=2)


def test_cancelling_ends_the_child(tmp_path: Path) -> None:
    slow = tmp_path / "slow"
    slow.write_bytes(made.pdf([""], packed=drawing()))

    async def work(parsers: Parsers) -> None:
        asked = asyncio.create_task(parsers.parsed(slow, "a.pdf"))
        await asyncio.sleep(0.5)
        (child,) = parsers._children
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        assert child.process.returncode == -9
        assert not parsers._children

    with_parsers(work)


KINDS = [
    "csv",
    "docx",
    "eml",
    "gz",
    "html",
    "ipynb",
    "json",
    "md",
    "pdf",
    "py",
    "rst",
    "svg",
    "txt",
    "xlsx",
    "yaml",
]
STARTS = [
    b"",
    b"%PDF-1.4\n",
    b"PK\x03\x04",
    b"\x1f\x8b\x08",
    b"<?xml version='1.0'?>",
    b"<html>",
    b"\xff\xfe",
    b"{",
]


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kind=st.sampled_from(KINDS), start=st.sampled_from(STARTS), data=st.binary(max_size=600))
@example(kind="svg", start=b"", data=b"<svg/>")
def test_whatever_a_file_holds_is_read_or_refused(
    reading: Reading, kind: str, start: bytes, data: bytes
) -> None:
    try:
        parsed = reading(start + data, f"a.{kind}")
    except Unreadable as error:
        assert error.code in ("invalid_file", "unsupported_file")
        assert "its reader end" not in str(error)
    else:
        assert all(block.text.strip() for block in parsed.blocks)
        assert parsed.blocks


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    which=st.sampled_from(["pdf", "docx", "xlsx", "pptx"]),
    at=st.integers(0),
    change=st.binary(min_size=1, max_size=8),
)
def test_damaged_documents_are_read_or_refused(reading: Reading, which: str, at: int, change: bytes) -> None:
    data = bytearray(WHOLE[which])
    at %= len(data)
    data[at : at + len(change)] = change
    try:
        reading(bytes(data), f"a.{which}")
    except Unreadable as error:
        assert "its reader end" not in str(error)


WHOLE = {
    "pdf": made.pdf(["Pumps."], ["Valves."]),
    "docx": made.word_file(),
    "xlsx": made.sheet_file(),
    "pptx": made.slide_file(),
}


def test_children_end_with_their_server(tmp_path: Path) -> None:
    """Even one that is reading, where the server is killed."""
    slow = tmp_path / "slow"
    slow.write_bytes(made.pdf([""], packed=drawing()))
    server = subprocess.Popen([sys.executable, "-c", SERVER, str(slow)], stdout=subprocess.PIPE, text=True)
    with server:
        assert server.stdout
        child = int(server.stdout.readline())
        time.sleep(0.3)
        server.kill()
    deadline = time.monotonic() + 5
    while Path(f"/proc/{child}/stat").exists() and ") Z" not in Path(f"/proc/{child}/stat").read_text(
        "utf-8"
    ):
        assert time.monotonic() < deadline
        time.sleep(0.02)


SERVER = """
import asyncio, sys
from pathlib import Path
from llama_stack_lite.config.sections import Documents
from llama_stack_lite.errors import Unavailable
from llama_stack_lite.rag.parsers.__main__ import FILES
from llama_stack_lite.rag.parsing import Parsers

async def main():
    parsers = Parsers(Documents())
    asked = asyncio.create_task(parsers.parsed(Path(sys.argv[1]), "a.pdf"))
    while not parsers._children:
        await asyncio.sleep(0.01)
    (child,) = parsers._children
    print(child.process.pid, flush=True)
    await asked

asyncio.run(main())
"""


def test_children_can_do_little(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They know no secrets, write no files, and give way to everything else."""
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    path = tmp_path / "blob"
    path.write_text("Pumps.")

    async def work(parsers: Parsers) -> None:
        await parsers.parsed(path, "a.txt")
        (child,) = parsers._children
        process = Path(f"/proc/{child.process.pid}")
        assert b"secret" not in (process / "environ").read_bytes()
        limits = (process / "limits").read_text("utf-8")
        assert re.search(r"Max file size +0 +0 ", limits)
        assert re.search(r"Max core file size +0 +0 ", limits)
        assert re.search(r"Max address space +\d+ ", limits)
        assert os.getpriority(os.PRIO_PROCESS, child.process.pid) == 10
        assert os.getsid(child.process.pid) == child.process.pid

    with_parsers(work)


def test_only_regular_files_are_read(runner: asyncio.Runner, parsers: Parsers, tmp_path: Path) -> None:
    link, pipe = tmp_path / "link", tmp_path / "pipe"
    link.symlink_to(ROOT / "README.md")
    os.mkfifo(pipe)
    for path in (link, pipe, tmp_path, Path("/dev/zero"), tmp_path / "none"):
        with pytest.raises(Unreadable) as caught:
            runner.run(parsers.parsed(path, "README.md"))
        assert re.search("no regular file|cannot be opened", str(caught.value))


def test_a_child_is_replaced_after_many_files(tmp_path: Path) -> None:
    path = tmp_path / "blob"
    path.write_text("Pumps.")

    async def work(parsers: Parsers) -> None:
        seen = set()
        for _ in range(FILES + 50):
            await parsers.parsed(path, "a.txt")
            seen |= {child.process.pid for child in parsers._children}
        assert len(seen) == 2

    with_parsers(work)


def test_a_pool_that_is_closed_reads_no_more(tmp_path: Path) -> None:
    slow = tmp_path / "slow"
    slow.write_bytes(made.pdf([""], packed=drawing()))

    async def work(parsers: Parsers) -> None:
        asked = asyncio.create_task(parsers.parsed(slow, "a.pdf"))
        await asyncio.sleep(0.5)
        await parsers.aclose()
        for each in (asked, parsers.parsed(slow, "a.pdf")):
            with pytest.raises(Unavailable, match="going down"):
                await each

    with_parsers(work)

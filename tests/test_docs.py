"""What README and docs show is true: Python runs, YAML is a distribution, commands exist."""

import re
import shlex
from pathlib import Path

import click
import pytest
import yaml

from llama_stack_lite import cli
from tests.support.documents import pdf
from tests.support.serving import Running

ROOT = Path(__file__).parent.parent
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path, *languages: str) -> list[str]:
    found = re.findall(r"^```(\w+)\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)
    return [text for language, text in found if language in languages]


def each(*languages: str) -> list[object]:
    return [
        pytest.param(text, id=f"{page.name}-{number}")
        for page in PAGES
        for number, text in enumerate(blocks(page, *languages))
    ]


@pytest.mark.model
@pytest.mark.parametrize("source", each("python"))
def test_python_runs(starter: Running, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    _write_manuals(tmp_path / "manuals")
    source = source.replace("http://127.0.0.1:8321", starter.url)
    exec(compile(source, "<docs>", "exec"), {"__name__": "docs"})  # noqa: S102 - our own documentation


def _write_manuals(folder: Path) -> None:
    """The folder of PDFs that a page works with."""
    folder.mkdir()
    coffee = ["Descaling the coffee machine", "Fill the tank with vinegar and water, and run it twice."]
    kettle = ["The kettle", "The kettle boils a litre of water in three minutes."]
    for name, lines in (("coffee", coffee), ("kettle", kettle)):
        (folder / f"{name}.pdf").write_bytes(pdf(lines))


@pytest.mark.parametrize("source", each("yaml"))
def test_yaml_reads(source: str) -> None:
    assert isinstance(yaml.safe_load(source), dict | list)


def commands() -> list[object]:
    lines: list[object] = []
    for page in PAGES:
        for text in blocks(page, "sh", "bash", "console"):
            for line in re.sub(r"\\\n\s*", "", text).splitlines():
                for part in re.split(r"&&|\|", line.removeprefix("$ ")):
                    if part.strip().startswith("llama-lite "):
                        lines.append(pytest.param(part.strip(), id=f"{page.name}: {part.strip()}"))
    return lines


@pytest.mark.parametrize("line", commands())
def test_commands_exist_with_their_options(line: str) -> None:
    words = [word for word in shlex.split(line, comments=True)[1:] if word not in ("...", "&")]
    command: click.Command = cli.main
    context = click.Context(command, info_name="llama-lite")
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        name, found, rest = command.resolve_command(context, words)
        assert found is not None, name
        command, words = found, rest
        context = click.Context(command, info_name=name, parent=context)
    known = {
        option for parameter in command.params for option in [*parameter.opts, *parameter.secondary_opts]
    }
    for word in words:
        if word.startswith("-") and word not in ("-h", "--help"):
            assert word.split("=")[0] in known, f"{line}: no option {word}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_the_continuous_integration_runs_the_test_command_of_the_readme() -> None:
    shown = [
        line
        for text in blocks(ROOT / "README.md", "sh")
        for line in text.splitlines()
        if "just check" in line
    ]
    assert len(shown) == 1
    assert shown[0] in (ROOT / ".ci" / "run").read_text(encoding="utf-8")

"""`llama-lite providers`, `distro` and `version`: what is installed here."""

import json
import platform
from importlib.metadata import version as version_of
from pathlib import Path

import click
import yaml

from llama_stack_lite.config import shipped
from llama_stack_lite.errors import NotFound, StackError

from .installed import plugins
from .output import json_option, show


@click.group()
def providers() -> None:
    """List the installed providers."""


@providers.command("list")
@json_option
def list_providers(as_json: bool) -> None:
    """List the installed plug-ins of each API, and what those lack that cannot run."""
    rows = [
        {
            "api": plugin.api,
            "provider": plugin.name,
            "package": plugin.package,
            "ready": not plugin.missing,
            "missing": plugin.missing,
            "remedy": plugin.remedy,
        }
        for plugin in plugins()
    ]
    show(rows, as_json=as_json)


@click.group()
def distro() -> None:
    """List, show and copy distributions."""


@distro.command("list")
@json_option
def list_distributions(as_json: bool) -> None:
    """List the distributions that `llama-lite run` knows by name."""
    rows = [
        {"name": name, "description": (yaml.safe_load(file.read_text("utf-8")) or {}).get("description")}
        for name, file in shipped().items()
    ]
    show(rows, as_json=as_json)


@distro.command("show")
@click.argument("name")
def show_distribution(name: str) -> None:
    """Print a distribution's YAML."""
    click.echo(_text(name), nl=False)


@distro.command("new")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--from", "origin", default="starter", show_default=True, help="The distribution to copy.")
def new_distribution(file: Path, origin: str) -> None:
    """Copy a distribution to FILE, to change it there."""
    text = _text(origin)
    try:
        with file.open("x", encoding="utf-8") as target:
            target.write(text)
    except FileExistsError:
        raise StackError(f"{file} exists already; name another file, or remove it") from None
    except OSError as error:
        raise StackError(f"cannot write {file}: {error.strerror}") from error
    click.echo(f"Wrote {file}. Run it: llama-lite run {file}")


def _text(name: str) -> str:
    known = shipped()
    if name not in known:
        raise NotFound("distribution", name, known)
    return known[name].read_text("utf-8")


@click.command()
@json_option
def version(as_json: bool) -> None:
    """Show the version, and what it runs on."""
    facts = {
        "llama-stack-lite": version_of("llama-stack-lite"),
        "python": platform.python_version(),
        "platform": platform.platform(),
    }
    click.echo(json.dumps(facts, indent=2) if as_json else "\n".join(f"{k} {v}" for k, v in facts.items()))

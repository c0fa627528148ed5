"""`llama-lite models quantize`: a model of this machine in another quantization."""

import time

import click
from click.exceptions import Exit
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from llama_stack_lite.models import card, format_size
from llama_stack_lite.quantization import Quantized, gguf
from llama_stack_lite.quantization import quantize as quantize_model

from . import EXIT_INTERRUPT


@click.command()
@click.argument("model")
@click.argument("kind", metavar="TYPE")
@click.option("--id", "identifier", metavar="NAME", help="Name of the new model; by default MODEL-TYPE.")
@click.option("--force", is_flag=True, help="Replace a model that has this name already.")
def quantize(model: str, kind: str, identifier: str | None, force: bool) -> None:
    """Make another quantization of a model on this machine, with llama.cpp.

    TYPE is llama.cpp's, such as q8_0, q4_0, q4_k_m or f16. The new model has every fact of the old one's
    card, and a distribution names it as any other.
    """
    found = card(model)
    click.echo(
        f"Quantizing {found.id} ({format_size(gguf(found).stat().st_size)}) to {kind.upper()}", err=True
    )
    began = time.perf_counter()
    console = Console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        disable=not console.is_terminal,
        transient=True,
    )
    try:
        with bar:
            task = bar.add_task("tensors", total=None)
            made = quantize_model(
                found,
                kind,
                identifier=identifier,
                force=force,
                progress=lambda done, total: bar.update(task, completed=done, total=total),
            )
    except KeyboardInterrupt:
        click.echo("Interrupted; nothing is left of it.", err=True)
        raise Exit(EXIT_INTERRUPT) from None
    _tell(made, seconds=time.perf_counter() - began)


def _tell(made: Quantized, *, seconds: float) -> None:
    size = format_size(made.path.stat().st_size)
    click.echo(f"{made.card.id} is ready: {size} in {made.path.parent}, made in {seconds:.1f} s")
    for remark in made.remarks:
        click.echo(remark, err=True)

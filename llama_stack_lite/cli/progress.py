"""How far an ingestion is, and what came of it: a bar on a terminal, lines elsewhere."""

import json
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any, Self

import click
from rich import progress as bars
from rich.console import Console

from llama_stack_lite.models import format_size

from .gathering import LeftOut
from .ingesting import Ingest, Tally

EVERY = 5  # seconds between two lines
NAMED = 3  # files that stand for all that were left out for one reason


class Progress:
    """Called with each change of the tally."""

    def __init__(self, *, quiet: bool) -> None:
        console = Console(stderr=True)
        self._bar = bars.Progress(
            bars.TextColumn("{task.description}"),
            bars.BarColumn(),
            bars.DownloadColumn(),
            bars.TimeRemainingColumn(),
            console=console,
            disable=quiet or not console.is_terminal,
        )
        self._task = self._bar.add_task("", total=None)
        self._lines = not quiet and not console.is_terminal
        self._started = self._said = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._started

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        self._bar.stop()

    def __call__(self, tally: Tally) -> None:
        text = f"{tally.done:,}/{tally.files:,} files, {tally.chunks:,} chunks"
        self._bar.update(self._task, description=text, completed=tally.bytes, total=tally.total_bytes)
        if self._lines and time.monotonic() - self._said >= EVERY:
            self._said = time.monotonic()
            left = self.seconds * (tally.total_bytes / max(tally.bytes, 1) - 1)
            click.echo(f"{text}, {format_size(tally.bytes)}; {left:.0f} s to go", err=True)


def interrupted(job: Ingest) -> str:
    """What an ingestion leaves that did not come to its end."""
    return (
        f"Stopped: {job.tally.done:,} of {job.tally.files:,} files are done, and the server is at work on"
        f" {job.flying}. The same command goes on from here."
    )


def report(
    name: str, store: str, tally: Tally, left: Iterable[LeftOut], *, seconds: float, as_json: bool
) -> None:
    """What was done, on stdout; what was not, and why, on stderr."""
    left = [*left, *tally.same]
    if as_json:
        counts: dict[str, Any] = asdict(tally) | {"seconds": round(seconds, 2)}
        counts["failed"], counts["left_out"] = _rows(tally.failed), _rows(left)
        del counts["same"]
        click.echo(json.dumps({"store": store, "name": name, **counts}, indent=2, ensure_ascii=False))
        return
    parts = [
        f"{getattr(tally, kind):,} {kind}"
        for kind in ("added", "replaced", "updated", "unchanged")
        if getattr(tally, kind)
    ]
    click.echo(
        f"{name} ({store}): {', '.join(parts) or 'nothing added'}; {tally.chunks:,} chunks in {seconds:.1f} s"
    )
    for line in _reasons(left):
        click.echo(f"Left out: {line}", err=True)
    for each in tally.failed:
        click.echo(f"Failed: {each.path}: {each.reason}", err=True)


def _rows(left: Iterable[LeftOut]) -> list[dict[str, str]]:
    return [{"path": str(each.path), "reason": each.reason} for each in left]


def _reasons(left: list[LeftOut]) -> Iterable[str]:
    for reason, count in Counter(each.reason for each in left).most_common():
        names = [str(each.path) for each in left if each.reason == reason][:NAMED]
        yield f"{count:,} {reason} ({', '.join(names)}{', ...' if count > NAMED else ''})"

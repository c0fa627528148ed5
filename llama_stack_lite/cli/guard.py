"""`llama-lite guard eval`: how right a shield is on rows of which it is known whether they are unsafe."""

import asyncio
import dataclasses
import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import click
from rich.console import Console
from rich.progress import track

from llama_stack_lite import config as configuration
from llama_stack_lite.api.safety import Touchpoint, Verdict
from llama_stack_lite.config import StackConfig
from llama_stack_lite.errors import ConfigError, GuardFailed, NotFound, StackError
from llama_stack_lite.safety.datasets import Row, read
from llama_stack_lite.safety.evaluation import Judged, Rate, Report, curve, report
from llama_stack_lite.safety.judge import Judge
from llama_stack_lite.safety.plot import picture
from llama_stack_lite.server import create_app

from .models import pull_shown
from .serving import go_offline, missing_models, started

NAMES = {
    "precision": "precision",
    "recall": "recall",
    "f1": "F1",
    "false_positive_rate": "false-positive rate",
    "auprc": "AUPRC",
    "auroc": "AUROC",
}


@dataclass(frozen=True, slots=True)
class Result:
    """What became of a row: a verdict, or why there is none."""

    row: Row
    verdict: Verdict | None
    error: str | None
    seconds: float

    def judged(self, threshold: float | None) -> Judged:
        """As it counts; with a threshold a verdict without a score is none."""
        score = self.verdict.score if self.verdict else None
        if threshold is None:
            return Judged(self.row.unsafe, self.verdict.flagged if self.verdict else None, score)
        return Judged(self.row.unsafe, None if score is None else score >= threshold, score)

    def record(self) -> dict[str, Any]:
        """For a file: everything but the text."""
        said = self.verdict.model_dump(exclude={"reason"}) if self.verdict else {"flagged": None}
        about = {"data": self.row.data, "row": self.row.number, "unsafe": self.row.unsafe}
        return about | said | {"error": self.error, "seconds": round(self.seconds, 4)}


@click.group()
def guard() -> None:
    """Evaluate shields."""


def _svg(context: click.Context, parameter: click.Parameter, value: Path | None) -> Path | None:
    if value and value.suffix != ".svg":
        raise click.BadParameter(f"{value} is drawn as SVG: name a file that ends in .svg")
    return value


@guard.command("eval")
@click.argument("shield")
@click.argument("sources", nargs=-1, metavar="[NAME|FILE]...")
@click.option("--data", required=True, multiple=True, metavar="NAME|FILE", help="Rows; may be given often.")
@click.option("--limit", type=click.IntRange(1), metavar="N", help="N rows of each, evenly from the whole.")
@click.option("--threshold", type=click.FloatRange(0, 1), help="Flag from this score on, whatever it says.")
@click.option("--parallel", type=click.IntRange(1), default=4, show_default=True, help="Rows at a time.")
@click.option(
    "--out", type=click.File("w", encoding="utf-8"), help="Write each row's verdict, as JSON lines."
)
@click.option(
    "--plot",
    type=click.Path(dir_okay=False, path_type=Path),
    callback=_svg,
    help="Draw precision and recall over the threshold, as SVG.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--set", "overrides", multiple=True, metavar="A.B=VALUE", help="Override one setting.")
@click.option("--offline", is_flag=True, help="Fetch nothing; what is missing is an error.")
def evaluate(
    shield: str,
    sources: tuple[str, ...],
    data: tuple[str, ...],
    limit: int | None,
    threshold: float | None,
    parallel: int,
    out: IO[str] | None,
    plot: Path | None,
    as_json: bool,
    overrides: tuple[str, ...],
    offline: bool,
) -> None:
    """Measure how right a shield of a distribution is.

    SHIELD is its name there; the distribution is started in this process, `starter` if none is named. The
    data are jailbreakbench, strongreject, scored-answers, or files of JSON lines or CSV with `text` (or
    `prompt`, and `response` where that is what is judged) and `unsafe`.
    """
    logging.basicConfig(level="ERROR", format="%(levelname)s %(name)s: %(message)s")
    # each failure is counted below
    logging.getLogger("llama_stack_lite.safety").setLevel("CRITICAL")
    if offline:
        go_offline()
    config = configuration.load(sources or ("starter",), overrides=overrides)
    if shield not in config.safety:
        raise NotFound("shield", shield, config.safety)
    fetch = None if offline else lambda name: click.echo(f"Fetching {name}", err=True)
    rows = [row for reference in data for row in read(reference, limit=limit, fetch=fetch)]
    for card in missing_models(config, offline=offline):
        pull_shown(card)
    results, seconds = asyncio.run(_results(config, shield, rows, parallel=parallel, keep=_keeper(out)))
    _tell(results, threshold=threshold, speed=len(rows) / seconds, as_json=as_json)
    if plot:
        _draw(results, plot, title=f"{shield} on {', '.join(data)}", threshold=threshold)


def _keeper(out: IO[str] | None) -> Callable[[Result], None]:
    """Write results as they come, so that a run which is broken off leaves them."""

    def keep(result: Result) -> None:
        if out:
            out.write(json.dumps(result.record()) + "\n")
            out.flush()

    return keep


async def _results(
    config: StackConfig, shield: str, rows: Sequence[Row], *, parallel: int, keep: Callable[[Result], None]
) -> tuple[list[Result], float]:
    """The results in the order of the rows, and how many seconds all of them took."""
    app = create_app(config)
    async with started(app):
        judge: Judge = app.state.stack.judge
        if shield in judge.waiting:
            pull = f" ({command})" if (command := app.state.stack.pull()) else ""
            raise ConfigError(f"shield `{shield}` cannot judge: its model is not here{pull}")
        turns = asyncio.Semaphore(parallel)

        async def one(row: Row) -> Result:
            async with turns:
                result = await _asked(judge, shield, row)
            keep(result)
            return result

        console, began = Console(stderr=True), time.perf_counter()
        pending = [asyncio.ensure_future(one(row)) for row in rows]
        shown = track(pending, "rows", console=console, disable=not console.is_terminal, transient=True)
        return [await each for each in shown], time.perf_counter() - began


async def _asked(judge: Judge, shield: str, row: Row) -> Result:
    began = time.perf_counter()
    verdict, error = None, None
    touchpoint: Touchpoint = "output" if row.turns[-1].role == "assistant" else "input"
    try:
        verdict = await judge.ask(shield, row.turns, touchpoint=touchpoint)
    except GuardFailed as failure:
        error = str(failure)
    return Result(row, verdict, error, time.perf_counter() - began)


def _tell(results: Sequence[Result], *, threshold: float | None, speed: float, as_json: bool) -> None:
    groups: dict[str, list[Result]] = {}
    for result in results:
        groups.setdefault(result.row.data, []).append(result)
    if len(groups) > 1:
        groups["all"] = list(results)
    reports = {name: report([each.judged(threshold) for each in group]) for name, group in groups.items()}
    errors = Counter(result.error for result in results if result.error)
    if as_json:
        figures = {name: dataclasses.asdict(each) for name, each in reports.items()}
        click.echo(json.dumps({"rows_per_second": speed, "errors": errors, "data": figures}, indent=2))
        return
    for name, each in reports.items():
        click.echo("\n".join(_lines(name, each)))
    click.echo(f"{speed:.1f} rows/s")
    for message, count in errors.most_common():
        click.echo(f"{count} without a verdict: {message}", err=True)


def _lines(name: str, figures: Report) -> list[str]:
    found = [f"{name}: {figures.rows} rows, {figures.unsafe} of them unsafe, {figures.errors} errors"]
    for key, label in NAMES.items():
        value: Rate | float | None = getattr(figures, key)
        if isinstance(value, Rate):
            shown = f"{value.value:.3f}  ({value.low:.3f} to {value.high:.3f})"
        else:
            shown = "-" if value is None else f"{value:.3f}"
        found.append(f"  {label:20}{shown}")
    return found


def _draw(results: Sequence[Result], path: Path, *, title: str, threshold: float | None) -> None:
    points = curve([result.judged(threshold) for result in results])
    if not points:
        raise StackError(f"{path} is not drawn: the shield gave no scores")
    try:
        path.write_text(picture(points, title=title, threshold=threshold), encoding="utf-8")
    except OSError as error:
        raise StackError(f"{path}: {error.strerror}") from error

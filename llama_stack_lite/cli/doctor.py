"""`llama-lite doctor`: what is broken on this machine, and what to do about it."""

import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import click
from click.exceptions import Exit

from llama_stack_lite import config as configuration
from llama_stack_lite.config import StackConfig, home
from llama_stack_lite.errors import StackError

from .installed import plugins
from .output import json_option, show
from .port import bind
from .serving import local_models, missing_models

GB = 1e9
COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}


@dataclass(frozen=True, slots=True)
class Check:
    """One finding; only `fail` keeps a distribution from running."""

    name: str
    status: Literal["ok", "warn", "fail"]
    detail: str
    remedy: str | None = None


@click.command()
@click.argument("sources", nargs=-1, metavar="[NAME|FILE]...")
@json_option
def doctor(sources: tuple[str, ...], as_json: bool) -> None:
    """Say what is broken on this machine, and what to do about it.

    The distribution that is checked is `starter`, unless another is named. Exits 1 when something is broken.
    """
    checks = [*_machine(), *_extras(), *_distribution(sources or ("starter",))]
    if as_json:
        show([asdict(check) for check in checks], as_json=True)
    else:
        for check in checks:
            click.echo(_line(check))
    if any(check.status == "fail" for check in checks):
        raise Exit(1)


def _line(check: Check) -> str:
    mark = click.style(f"{check.status:4}", fg=COLOURS[check.status])
    return f"{mark} {check.name}: {check.detail}" + (f" -> {check.remedy}" if check.remedy else "")


def _machine() -> Iterator[Check]:
    yield Check("python", "ok", platform.python_version())
    yield _home(home())
    yield _disk(home())
    yield _memory()


def _nearest(path: Path) -> Path:
    """The path, or the closest of its parents that exists."""
    return next(folder for folder in (path, *path.absolute().parents) if folder.exists())


def _home(path: Path) -> Check:
    nearest = _nearest(path)
    if nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK):
        return Check("home", "ok", f"{path} is writable")
    return Check("home", "fail", f"{path} is not writable", "set LLAMA_LITE_HOME to a folder of yours")


def _disk(path: Path) -> Check:
    free = shutil.disk_usage(_nearest(path)).free / GB
    if free >= 2:
        return Check("disk", "ok", f"{free:.0f} GB free")
    return Check("disk", "warn", f"{free:.1f} GB free", "a model takes 0.1 to 8 GB: make room")


def _memory() -> Check:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    try:
        size = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / GB
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf
        return Check("cpu", "ok", f"{cores} cores")
    detail = f"{cores} cores, {size:.1f} GB of memory"
    if size >= 2:
        return Check("cpu", "ok", detail)
    return Check("cpu", "warn", detail, "choose a model that is smaller than the memory")


def _extras() -> Iterator[Check]:
    for plugin in plugins():
        name = f"provider {plugin.api}/{plugin.name}"
        if plugin.missing:
            yield Check(name, "warn", f"needs {', '.join(plugin.missing)}", plugin.remedy)
        else:
            yield Check(name, "ok", f"installed with {plugin.package}")


def _distribution(sources: tuple[str, ...]) -> Iterator[Check]:
    names = " ".join(sources)
    try:
        config = configuration.load(sources)
        missing = {card.id for card in missing_models(config, offline=False)}
        cards = local_models(config)
    except StackError as error:
        for line in str(error).splitlines():
            yield Check("config", "fail", line)
        return
    yield Check("config", "ok", f"{names} is valid")
    for card in cards:
        if card.id in missing:
            yield Check(
                "model", "warn", f"{card.id} is not on this machine", f"llama-lite run {names} pulls it"
            )
        else:
            yield Check("model", "ok", f"{card.id} is on this machine")
    yield _port(config)


def _port(config: StackConfig) -> Check:
    host, port = config.server.host, config.server.port
    try:
        bind(host, port).close()
    except StackError as error:
        return Check("port", "warn", str(error))
    return Check("port", "ok", f"{host}:{port} is free")

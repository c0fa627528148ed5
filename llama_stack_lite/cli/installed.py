"""Which plug-ins are installed and which could run, found out without importing any of them."""

import importlib.metadata
import re
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec

GROUP = "llama_stack_lite."


@dataclass(frozen=True, slots=True)
class Plugin:
    """An entry point; `missing` names what it needs and is not installed, `remedy` the command for it."""

    api: str
    name: str
    package: str
    missing: list[str]
    remedy: str | None


def plugins() -> list[Plugin]:
    """Every plug-in of every API, in order of API and name."""
    groups = sorted(group for group in entry_points().groups if group.startswith(GROUP))
    points = [point for group in groups for point in entry_points(group=group)]
    return [_plugin(point) for point in sorted(points, key=lambda point: (point.group, point.name))]


def _plugin(point: EntryPoint) -> Plugin:
    package = point.dist.name if point.dist else "?"
    missing = [name for name in _requirements(point) if not _is_installed(name)]
    remedy = f"pip install '{package}[{','.join(point.extras)}]'" if missing else None
    if not missing and not _is_found(point.module):
        missing, remedy = [point.module], f"pip install --force-reinstall {package}"
    return Plugin(point.group.removeprefix(GROUP), point.name, package, missing, remedy)


def _requirements(point: EntryPoint) -> list[str]:
    """The packages that the entry point's extras ask for."""
    wanted = {f"extra == '{extra}'" for extra in point.extras}
    asked = (point.dist.requires or []) if point.dist else []
    found = []
    for requirement in asked:
        text, _, marker = requirement.partition(";")
        name = re.match(r"[\w.-]+", text)
        if name and marker.strip().replace('"', "'") in wanted:
            found.append(name[0])
    return found


def _is_installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _is_found(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ImportError:  # its parent package is missing, or broken
        return False

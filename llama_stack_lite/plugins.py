"""Plug-ins: found by entry point or by `module:Class`, imported when a distribution names them."""

import importlib
import logging
import re
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from pydantic import BaseModel

from .errors import ConfigError, did_you_mean

log = logging.getLogger(__name__)


def plugins(api: str) -> dict[str, EntryPoint]:
    """The installed plug-ins of an API by name; none is imported."""
    return {point.name: point for point in entry_points(group=f"llama_stack_lite.{api}")}


def find(api: str, name: str) -> Any:
    """Find a plug-in class by entry-point name, or by `module:Class`.

    Raises `ConfigError` where there is none, or where a package that it needs is not installed.
    """
    known = plugins(api)
    if re.fullmatch(r"[\w.]+:[\w.]+", name):
        point = EntryPoint(name, name, f"llama_stack_lite.{api}")
    elif name in known:
        point = known[name]
    else:
        listed = ", ".join(sorted(known))
        raise ConfigError(f"there is no {api} provider `{name}`{did_you_mean(name, known)}; known: {listed}")
    try:
        return point.load()
    except ModuleNotFoundError as error:
        raise ConfigError(f"provider `{name}` needs {error.name}: {_remedy(point)}") from error
    except AttributeError as error:
        raise ConfigError(f"provider `{name}`: {error}") from error
    except Exception as error:
        log.debug("the import of provider %s failed", name, exc_info=True)
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigError(f"provider `{name}` cannot be imported: {reason}") from error


def load(target: str, *, extra: str) -> Any:
    """A part of this package, `module:name`, that needs the packages of an extra; raises `ConfigError`."""
    module, _, name = target.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        raise ConfigError(f"storage: needs {error.name}: pip install 'llama-stack-lite[{extra}]'") from error


def _remedy(point: EntryPoint) -> str:
    if point.dist is None:
        return "no such module can be imported"
    extras = f"[{','.join(point.extras)}]" if point.extras else ""
    return f"pip install '{point.dist.name}{extras}'"


def config_class(api: str, name: str) -> type[BaseModel]:
    """The pydantic model of a plug-in's settings; raises `ConfigError` as `find` does."""
    found = getattr(find(api, name), "Config", None)
    if not (isinstance(found, type) and issubclass(found, BaseModel)):
        raise ConfigError(f"provider `{name}` is no plug-in: it has no pydantic model `Config`")
    return found

"""From sources to a checked `StackConfig`."""

import functools
import re
from collections.abc import Sequence
from pathlib import Path

from .check import check
from .environment import expand
from .reading import read_override, read_source, shipped
from .sections import StackConfig
from .tree import Node, Place, Problems, merge, prune

__all__ = ["load", "shipped"]


def load(sources: Sequence[str], *, overrides: Sequence[str] = ()) -> StackConfig:
    """Read the sources, files or names of shipped distributions, and merge them left to right.

    An override, `section.key=value`, beats them all. Every provider's own keys are checked too, for which its
    plug-in is imported. Raises `ConfigError` with a line for each mistake, `file:line:column key: what`.
    """
    problems = Problems()
    trees = [read_source(source, order, problems) for order, source in enumerate(sources)]
    first = len(sources)
    trees += [read_override(text, first + order, problems) for order, text in enumerate(overrides)]
    readable = [tree for tree in trees if tree is not None]
    if len(readable) < len(trees):  # what is left of the rest would only seem to be wrong
        problems.raise_any()
    root = readable[0].place if readable else Place(0, 0, 0, "the configuration")
    merged = functools.reduce(merge, readable, Node({}, root))
    config = check(prune(expand(merged, (), problems), 2), problems)
    if "name" in config.model_fields_set or not sources:
        return config
    return config.model_copy(update={"name": re.sub(r"[^A-Za-z0-9_-]+", "-", Path(sources[0]).stem)})

"""A distribution: its YAML files read, merged, expanded and checked."""

from .loading import load, shipped
from .sections import Defaults, Enforce, Fetch, ProviderEntry, Server, StackConfig, Window, config_of, home

__all__ = [
    "Defaults",
    "Enforce",
    "Fetch",
    "ProviderEntry",
    "Server",
    "StackConfig",
    "Window",
    "config_of",
    "home",
    "load",
    "shipped",
]

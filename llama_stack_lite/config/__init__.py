"""A distribution: its YAML files read, merged, expanded and checked."""

from .loading import load, shipped
from .sections import Defaults, ProviderEntry, Server, StackConfig, config_of, home

__all__ = ["Defaults", "ProviderEntry", "Server", "StackConfig", "config_of", "home", "load", "shipped"]

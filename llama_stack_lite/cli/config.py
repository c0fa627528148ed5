"""`llama-lite config`: a configuration checked, shown, described."""

import json
from collections.abc import Callable
from typing import Any, TypeVar

import click
import yaml

from llama_stack_lite import config as configuration
from llama_stack_lite.config.schema import schema
from llama_stack_lite.config.show import shown

F = TypeVar("F", bound=Callable[..., Any])


def configured(command: F) -> F:
    """Give a command `sources` and `overrides`, as `config.load` takes them."""
    command = click.option(
        "--set", "overrides", multiple=True, metavar="A.B=VALUE", help="Override one setting."
    )(command)
    return click.argument("sources", nargs=-1, required=True, metavar="NAME|FILE...")(command)


@click.group()
def config() -> None:
    """Check and show a configuration, or its JSON Schema."""


@config.command()
@configured
def check(sources: tuple[str, ...], overrides: tuple[str, ...]) -> None:
    """Say everything that is wrong with a distribution, one line each; then exit 78."""
    configuration.load(sources, overrides=overrides)
    click.echo("The configuration is valid.")


@config.command()
@configured
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show(sources: tuple[str, ...], overrides: tuple[str, ...], as_json: bool) -> None:
    """Print the configuration, merged and expanded, without its secrets."""
    data = shown(configuration.load(sources, overrides=overrides))
    if as_json:
        click.echo(json.dumps(data, indent=2, ensure_ascii=False))
    else:
        click.echo(yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=1000), nl=False)


@config.command("schema")
def print_schema() -> None:
    """Print the JSON Schema of a distribution file, for editors."""
    click.echo(json.dumps(schema(), indent=2))

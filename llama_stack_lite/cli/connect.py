"""`llama-lite connect`: the settings that point other programs at a server."""

import asyncio
import re
from pathlib import Path
from string import Template

import click
import httpx
import yaml
from pydantic import BaseModel, ConfigDict, TypeAdapter

from llama_stack_lite import config as configuration
from llama_stack_lite.errors import NotFound, StackError

from .conversation import models, pick
from .output import json_option, show

URL = f"http://127.0.0.1:{configuration.Server().port}"
TIMEOUT = httpx.Timeout(5, connect=2)
CONTEXT = 4096  # tokens, where the server does not say
NO_ANSWER = "Start a server with `llama-lite run starter`, or say which by --url, --api-key and --model."
LOOPBACK = {"127.0.0.1", "localhost", "::1"}
# what would end a string, or be more than text in it, in one of the languages
SPECIAL = re.compile(r"""[\s"'\\$`]|[^\x20-\x7e]""")


class App(BaseModel):
    """A program that can talk to the server: what it is, where its settings go, and their text."""

    model_config = ConfigDict(extra="forbid")
    about: str
    docs: str
    language: str
    text: str
    where: str | None = None


def apps() -> dict[str, App]:
    """The programs by name, in the order that the file gives them."""
    raw = yaml.safe_load((Path(__file__).parent / "apps.yaml").read_text("utf-8"))
    return TypeAdapter(dict[str, App]).validate_python(raw)


def _plain(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    if value is not None and (not value or SPECIAL.search(value)):
        raise click.BadParameter("holds a character that settings would have to quote")
    return value


def _url(context: click.Context, parameter: click.Parameter, value: str) -> str:
    try:
        url = httpx.URL(value)
    except httpx.InvalidURL as error:
        raise click.BadParameter(f"{value!r} is no URL such as {URL}") from error
    if url.scheme not in ("http", "https") or not url.host or SPECIAL.search(value):
        raise click.BadParameter(f"{value!r} is no URL such as {URL}")
    return value.rstrip("/").removesuffix("/v1")


@click.command()
@click.argument("app", required=False)
@click.option("--url", default=URL, show_default=True, callback=_url, help="Address of the server.")
@click.option("--model", callback=_plain, help="Model to name.  [default: the server's first]")
@click.option("--api-key", callback=_plain, help="Key to name, and to ask the server with.")
@json_option
def connect(app: str | None, url: str, model: str | None, api_key: str | None, as_json: bool) -> None:
    """Print the settings that point APP at a server, or list the apps.

    The settings go to stdout, and where they belong to stderr. A server that runs is asked for its models.
    """
    known = apps()
    if app is None:
        show([{"app": name, "about": each.about} for name, each in known.items()], as_json=as_json)
        return
    if app not in known:
        raise NotFound("app", app, known)
    found = known[app]
    name, context = asyncio.run(_ask(url, model, api_key))
    values = {"url": url, "model": name, "key": api_key or "none", "context": context}
    text = Template(found.text).substitute(values, docker=_from_a_container(url))
    if as_json:
        show([{"app": app, **found.model_dump(), "text": text}], as_json=True)
        return
    click.echo(f"{found.where or found.about} ({found.docs}):", err=True)
    click.echo(text, nl=False)


async def _ask(url: str, model: str | None, key: str | None) -> tuple[str, int]:
    """The model's full name and its context in tokens; a server that does not answer is told of."""
    headers = {"authorization": f"Bearer {key}"} if key else {}
    async with httpx.AsyncClient(base_url=f"{url}/v1", headers=headers, timeout=TIMEOUT) as client:
        try:
            name = await pick(client, model)
            sizes = {entry["id"]: entry.get("context_length") for entry in await models(client)}
        except NotFound:
            raise
        except StackError as error:
            click.echo(f"{error}\n{NO_ANSWER}", err=True)
            return model or "<model>", CONTEXT
    if SPECIAL.search(name):
        raise StackError(f"{url} calls its model {name!r}, which settings would have to quote: pass --model")
    return name, sizes.get(name) or CONTEXT


def _from_a_container(url: str) -> str:
    """The address as a container on the server's machine reaches it."""
    address = httpx.URL(url)
    inside = address.copy_with(host="host.docker.internal") if address.host in LOOPBACK else address
    return str(inside).rstrip("/")

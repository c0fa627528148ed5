"""Where a command finds its server: one that runs, or a stack started in this process."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager

import click
import httpx

from llama_stack_lite import config as configuration
from llama_stack_lite.config import StackConfig
from llama_stack_lite.server import create_app

from .models import pull_shown
from .serving import missing_models, started
from .transport import InProcess

PORT = configuration.Server().port
URL = f"http://127.0.0.1:{PORT}/v1"
# a long prompt on a slow machine: minutes may pass before the first token
TIMEOUT = httpx.Timeout(600, connect=10)


def _url(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    try:
        valid = value is None or (httpx.URL(value).scheme in ("http", "https") and httpx.URL(value).host)
    except httpx.InvalidURL:
        valid = False
    if not valid:
        raise click.BadParameter(f"{value!r} is no URL such as {URL}")
    return value


url_option = click.option("--url", callback=_url, help=f"Base URL of a server.  [default: {URL}]")
distribution_option = click.option(
    "--distribution", metavar="NAME|FILE", help="Start this one here, and talk to no server."
)


def embedded(url: str | None, distribution: str | None) -> StackConfig | None:
    """The configuration to start in this process, with its models pulled; None where a server is asked."""
    if url:
        return None
    if distribution is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", PORT)) == 0:
                return None
        click.echo(f"No server at {URL}: starting `starter` in this process.", err=True)
    config = configuration.load([distribution or "starter"])
    for card in missing_models(config, offline=False):
        pull_shown(card)
    return config


def connection(
    config: StackConfig | None, url: str | None, *, key: str | None = None
) -> AbstractAsyncContextManager[httpx.AsyncClient]:
    """A client of the stack that `config` describes, started here, or without one of the server at `url`.

    A server is sent `key`, or OPENAI_API_KEY where that is set.
    """
    if config:
        return _in_process(config)
    return _client(url or URL, key or os.environ.get("OPENAI_API_KEY"))


@contextmanager
def reached(
    url: str | None, distribution: str | None, *, key: str | None = None
) -> Iterator[tuple[asyncio.Runner, httpx.AsyncClient]]:
    """A loop to run in, and in it the client of a server or of a stack that is started for this block."""
    config = embedded(url, distribution)
    with asyncio.Runner() as runner:
        opened = connection(config, url, key=key)
        client = runner.run(opened.__aenter__())
        try:
            yield runner, client
        finally:
            runner.run(opened.__aexit__(None, None, None))


def _client(
    url: str, key: str | None, transport: httpx.AsyncBaseTransport | None = None
) -> httpx.AsyncClient:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    return httpx.AsyncClient(base_url=url, headers=headers, timeout=TIMEOUT, transport=transport)


@asynccontextmanager
async def _in_process(config: StackConfig) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(config)
    keys = [key.get_secret_value() for key in config.server.api_keys]
    async with started(app), _client(URL, keys[0] if keys else None, InProcess(app)) as client:
        yield client

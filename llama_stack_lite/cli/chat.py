"""`llama-lite chat`: talk to a model of a running server, or of a stack in this process."""

import asyncio
import logging
import os
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import click
import httpx

from llama_stack_lite import config as configuration
from llama_stack_lite.config import StackConfig
from llama_stack_lite.server import create_app

from .agent import AgentConversation, found
from .conversation import Conversation, pick
from .models import pull_shown
from .repl import Repl, Talk, converse
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


@click.command()
@click.argument("prompt", nargs=-1)
@click.option("--url", callback=_url, help=f"Base URL of a server.  [default: {URL}]")
@click.option("--model", help="Model to talk to.  [default: the distribution's, or the first]")
@click.option("--agent", metavar="NAME", help="Talk to this agent, whose tools the server runs.")
@click.option("--system", help="System prompt.")
@click.option("--distribution", metavar="NAME|FILE", help="Start this one here, and talk to no server.")
def chat(
    prompt: tuple[str, ...],
    url: str | None,
    model: str | None,
    agent: str | None,
    system: str | None,
    distribution: str | None,
) -> None:
    """Talk to a model, or to an agent.

    With a PROMPT, or text on stdin, the answer is printed and that is all. Where no server runs and no --url
    is given, the distribution `starter` is started in this process. OPENAI_API_KEY is sent where it is set.
    """
    logging.basicConfig(level="ERROR", format="%(levelname)s %(name)s: %(message)s")
    if agent and model:
        raise click.UsageError("an agent has its own model: pass --agent or --model")
    text = _given(prompt)
    config = None if url else _embedded(distribution)
    with asyncio.Runner() as runner:
        resources = AsyncExitStack()
        try:
            connection = _in_process(config) if config else _client(url or URL, _key())
            client = runner.run(resources.enter_async_context(connection))
            default = config.defaults.model if config else None
            conversation: Talk
            if agent:
                conversation = AgentConversation(client, runner.run(found(client, agent)), system=system)
            else:
                conversation = Conversation(client, runner.run(pick(client, model or default)), system=system)
            if text is None:
                Repl(conversation, runner).run()
            else:
                converse(conversation, text, runner)
        finally:
            runner.run(resources.aclose())


def _given(prompt: tuple[str, ...]) -> str | None:
    """What is asked without a conversation: the arguments, and below them what is piped in."""
    piped = "" if sys.stdin.isatty() else sys.stdin.read().strip()
    text = "\n\n".join(part for part in (" ".join(prompt), piped) if part)
    if not text and not sys.stdin.isatty():
        raise click.UsageError("nothing is asked: stdin is empty, and there is no PROMPT")
    return text or None


def _embedded(distribution: str | None) -> StackConfig | None:
    """The configuration to start in this process, with its models pulled; None where a server runs."""
    if distribution is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", PORT)) == 0:
                return None
        click.echo(f"No server at {URL}: starting `starter` in this process.", err=True)
    config = configuration.load([distribution or "starter"])
    for card in missing_models(config, offline=False):
        pull_shown(card)
    return config


def _key() -> str | None:
    return os.environ.get("OPENAI_API_KEY")


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

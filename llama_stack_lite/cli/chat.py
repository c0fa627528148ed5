"""`llama-lite chat`: talk to a model of a running server, or of a stack in this process."""

import asyncio
import logging
import sys
from contextlib import AsyncExitStack

import click

from .agent import AgentConversation, found
from .conversation import Conversation, pick
from .reaching import connection, distribution_option, embedded, url_option
from .repl import Repl, Talk, converse


@click.command()
@click.argument("prompt", nargs=-1)
@url_option
@click.option("--model", help="Model to talk to.  [default: the distribution's, or the first]")
@click.option("--agent", metavar="NAME", help="Talk to this agent, whose tools the server runs.")
@click.option("--system", help="System prompt.")
@distribution_option
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
    config = embedded(url, distribution)
    with asyncio.Runner() as runner:
        resources = AsyncExitStack()
        try:
            client = runner.run(resources.enter_async_context(connection(config, url)))
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

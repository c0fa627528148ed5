"""`llama-lite run`: serve a distribution in this process."""

import asyncio
import gc
import logging
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import click
import uvicorn
from click.exceptions import Exit
from fastapi import FastAPI

from llama_stack_lite import config as configuration
from llama_stack_lite.api.models import ModelCard
from llama_stack_lite.config import StackConfig
from llama_stack_lite.errors import ConfigError
from llama_stack_lite.models import format_size
from llama_stack_lite.server import create_app
from llama_stack_lite.stack import Model, Stack

from . import EXIT_INTERRUPT, STARTED
from .config import configured
from .models import download_size, pull_shown
from .port import bind, is_loopback, listen
from .serving import go_offline, missing_models, started

GRACE = 5  # seconds that running answers get when the server is told to stop
SHOWN = 12  # models named in the banner


@click.command()
@configured
@click.option("--host", help="Address to listen at.  [default: 127.0.0.1]")
@click.option("--port", type=click.IntRange(0, 65535), help="0 picks a free one.  [default: 8321]")
@click.option("--offline", is_flag=True, help="Fetch nothing; a model that is missing is an error.")
@click.option("--insecure", is_flag=True, help="Listen beyond this machine without an API key.")
@click.option("--no-guard", is_flag=True, help="Judge nothing, whatever the distribution enforces.")
@click.option("--dry-run", is_flag=True, help="Check everything, say what would happen, and stop.")
@click.option(
    "--log-level",
    type=click.Choice(["error", "warning", "info", "debug"]),
    default="warning",
    show_default=True,
)
def run(
    sources: tuple[str, ...],
    overrides: tuple[str, ...],
    host: str | None,
    port: int | None,
    offline: bool,
    insecure: bool,
    no_guard: bool,
    dry_run: bool,
    log_level: str,
) -> None:
    """Serve a distribution behind the OpenAI API.

    Several files merge left to right, and --set beats them all. Models that the distribution names and this
    machine lacks are pulled first.
    """
    logging.basicConfig(level=log_level.upper(), format="%(levelname)s %(name)s: %(message)s")
    if offline:
        go_offline()
    address = [
        f"server.{key}={value}" for key, value in (("host", host), ("port", port)) if value is not None
    ]
    config = configuration.load(sources, overrides=[*overrides, *address])
    _check_reach(config.server, insecure=insecure)
    config = _guarded(config, no_guard=no_guard)
    with bind(config.server.host, config.server.port) as listener:
        missing = missing_models(config, offline=offline)
        if dry_run:
            click.echo("\n".join(_plan(config, missing)))
            return
        for card in missing:
            pull_shown(card)
        if code := asyncio.run(_serve(config, listener, log_level)):
            raise Exit(code)


def _check_reach(server: configuration.Server, *, insecure: bool) -> None:
    """Refuse to open a server without keys to other machines, unless told to in so many words."""
    if server.api_keys or is_loopback(server.host):
        return
    if not insecure:
        raise ConfigError(
            f"server.host: {server.host} can be reached from other machines, and no API key is configured: "
            "set server.api_keys, or pass --insecure to let everybody in"
        )
    click.echo(f"Warning: whoever reaches {server.host} can use this server; no API key is set.", err=True)


def _guarded(config: StackConfig, *, no_guard: bool) -> StackConfig:
    """The distribution as it is enforced; nothing is judged only where somebody said so in so many words."""
    if no_guard:
        return config.model_copy(update={"enforce": configuration.Enforce()})
    if not config.enforced():
        raise ConfigError(
            "enforce: this distribution judges nothing that models are asked or answer: name shields there "
            "(docs/safety.md), or pass --no-guard to serve without any"
        )
    return config


class Server(uvicorn.Server):
    """Says when it is ready, and ends by returning, so that the stack is closed after it."""

    exit_code = 0

    def __init__(self, config: uvicorn.Config, *, on_ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Wait for running answers, and end the late ones as if their clients had left."""
        late = asyncio.get_running_loop().call_later(GRACE, self._hang_up)
        await super().shutdown(sockets)
        late.cancel()

    def _hang_up(self) -> None:
        for connection in list(self.server_state.connections):
            connection.transport.abort()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.exit_code = EXIT_INTERRUPT if sig == signal.SIGINT else 0
        super().handle_exit(sig, frame)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Unlike uvicorn's own, does not raise the signal once more: that would end the process at once."""
        before = {
            number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


async def _serve(config: StackConfig, listener: socket.socket, log_level: str) -> int:
    """Serve until a signal comes; returns the exit code."""
    app = create_app(config)
    async with started(app):
        # what stands now stands to the end; and many requests at once are no garbage worth searching often
        gc.collect()
        gc.freeze()
        gc.set_threshold(10_000, 20, 50)
        settings = uvicorn.Config(
            app,
            lifespan="off",
            log_config=None,
            log_level=log_level,
            access_log=log_level in ("info", "debug"),
            timeout_graceful_shutdown=GRACE + 2,
        )
        port = listen(listener)
        server = Server(settings, on_ready=lambda: click.echo("\n".join(_banner(config, app, port))))
        await server.serve(sockets=[listener])
        return server.exit_code


def _url(host: str, port: int) -> str:
    """Where a client on this machine finds the server."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _banner(config: StackConfig, app: FastAPI, port: int) -> list[str]:
    url = _url(config.server.host, port)
    models = [_shown(model) for model in app.state.stack.models.values()]
    if more := models[SHOWN:]:
        models = [*models[:SHOWN], f"and {len(more)} more"]
    return [
        f"Ready in {time.perf_counter() - STARTED:.1f} s · API {url}/v1 · Docs {url}/docs",
        f"Models: {', '.join(models) or 'none'}",
        f"Safety: {_safety(config, app.state.stack)}",
        f"export OPENAI_BASE_URL={url}/v1",
        f"export OPENAI_API_KEY={'<your key>' if config.server.api_keys else 'none'}",
    ]


def _safety(config: StackConfig, stack: Stack) -> str:
    """Which shields judge what; `off` where one that should waits for its model, or there is none."""
    if not config.enforced():
        return "off (--no-guard): nothing is judged"
    points = {point: config.enforce.shields(point) for point in ("input", "output")}
    said = ", ".join(f"{point} by {' and '.join(names)}" for point, names in points.items() if names)
    if not stack.judge.off:
        return f"on: {said}"
    pull = f" ({command})" if (command := stack.pull()) else ""
    return f"off until {' and '.join(sorted(stack.judge.waiting))} has its model{pull}; then {said}"


def _shown(model: Model) -> str:
    """A model in the banner: what it is for, and how it is held where it is in this process."""
    facts: list[str] = [model.card.kind]
    if state := model.state:
        facts += [state.detail or state.state] if state.state != "failed" else [f"failed: {state.error}"]
    return f"{model.id} ({'; '.join(facts)})"


def _plan(config: StackConfig, missing: list[ModelCard]) -> list[str]:
    lines = ["The configuration is valid."]
    for card in missing:
        size = download_size(card)
        lines.append(f"Would pull {card.id}" + (f" ({format_size(size)})" if size else ""))
    for api, entries in config.providers().items():
        lines += [f"Would build {api} provider {name} ({entry.provider})" for name, entry in entries.items()]
    return [*lines, f"Would serve {_url(config.server.host, config.server.port)}/v1"]

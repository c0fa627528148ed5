"""The command line: one file per command family, imported when it is called."""

import importlib
import time

import click
from click.exceptions import Exit
from click.shell_completion import get_completion_class

from llama_stack_lite.errors import ConfigError, StackError

STARTED = time.perf_counter()
EXIT_CONFIG = 78  # EX_CONFIG of sysexits.h
EXIT_INTERRUPT = 130  # 128 + SIGINT, as shells count

# the help stands here so that `--help` and completion import no command
COMMANDS = {
    "run": ("run:run", "Serve a distribution behind the OpenAI API."),
    "chat": ("chat:chat", "Talk to a model, here or on a running server."),
    "ingest": ("documents:ingest", "Put files and folders into a vector store."),
    "search": ("documents:search", "Find passages in a vector store."),
    "connect": ("connect:connect", "Print the settings that point another program at a server."),
    "pull": ("models:pull", "Download models."),
    "models": ("models:models", "List, show, quantize and remove models."),
    "providers": ("listings:providers", "List the installed providers."),
    "distro": ("listings:distro", "List, show and copy distributions."),
    "config": ("config:config", "Check and show a configuration, or its JSON Schema."),
    "new": ("new:new", "Start a package of your own: a provider, or an agent."),
    "guard": ("guard:guard", "Evaluate shields."),
    "doctor": ("doctor:doctor", "Say what is broken on this machine, and what to do about it."),
    "version": ("listings:version", "Show the version."),
}


class Commands(click.Group):
    """A group that lists its commands from the table, and imports the one that is called.

    A `StackError` is its message on stderr, and an exit code: 78 for a configuration that cannot run, else 1.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name, command, rest = super().resolve_command(ctx, args)
        if name in COMMANDS:
            module, _, attribute = COMMANDS[name][0].partition(":")
            command = getattr(importlib.import_module(f"{__name__}.{module}"), attribute)
        return name, command, rest

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except StackError as error:
            click.echo(str(error), err=True)
            raise Exit(EXIT_CONFIG if isinstance(error, ConfigError) else 1) from error
        except KeyboardInterrupt:
            raise Exit(EXIT_INTERRUPT) from None


@click.group(
    cls=Commands,
    commands={name: click.Command(name, short_help=help) for name, (_, help) in COMMANDS.items()},
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="First: llama-lite run starter    Then, in another window: llama-lite chat",
)
@click.version_option(package_name="llama-stack-lite", prog_name="llama-lite")
def main() -> None:
    """One server around a Llama model: every backend a plug-in, all of it behind the OpenAI API."""


@main.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print a script for the shell's completion.

    For this shell only: eval "$(llama-lite completion bash)"
    """
    found = get_completion_class(shell)
    assert found is not None
    click.echo(found(main, {}, "llama-lite", "_LLAMA_LITE_COMPLETE").source())

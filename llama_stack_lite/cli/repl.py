"""The prompt of `llama-lite chat`: lines in, answers out, and what starts with a slash is a command."""

import asyncio
import importlib
import importlib.util
import sys
from collections.abc import Callable
from contextlib import aclosing

import click

from llama_stack_lite.config import home
from llama_stack_lite.errors import StackError

from .conversation import Conversation, models, pick

# absent on Windows; once imported, `input` edits lines with it
readline = importlib.import_module("readline") if importlib.util.find_spec("readline") else None

HISTORY = 1000  # lines kept
QUOTES = '"""'
HELP = """\
/model [name]   show the models, or switch to one
/system [text]  show the system prompt, or set it
/clear          forget what was said
/help           this list
/bye            end, as Ctrl-D does
\"\"\"             begins and ends an entry of several lines
Ctrl-C          stops the answer"""
# a model must not drive the terminal; newline and tab are all that text needs
CONTROLS = {code: None for code in (*range(32), *range(127, 160)) if code not in (9, 10)}


class Repl:
    """Ctrl-C stops the answer and leaves the prompt; Ctrl-D or /bye ends."""

    def __init__(self, conversation: Conversation, runner: asyncio.Runner) -> None:
        self.conversation = conversation
        self._runner = runner
        self._commands: dict[str, Callable[[str], None]] = {
            "/model": self._model,
            "/system": self._system,
            "/clear": self._clear,
            "/help": self._help,
        }

    def run(self) -> None:
        """Read and answer until the user ends it."""
        click.echo(f"{self.conversation.model} · /help lists the commands, /bye ends")
        _load_history()
        try:
            while (text := _read()) is not None and text.strip() != "/bye":
                try:
                    self._handle(text)
                except StackError as error:
                    click.echo(f"Error: {error}", err=True)
                except KeyboardInterrupt:
                    click.echo()
        finally:
            _save_history()

    def _handle(self, text: str) -> None:
        name, _, rest = text.strip().partition(" ")
        if name in self._commands:
            self._commands[name](rest.strip())
        elif name.startswith("/"):
            click.echo(f"There is no command {name}; /help lists them", err=True)
        elif text.strip():
            self._runner.run(answer(self.conversation, text))

    def _model(self, name: str) -> None:
        conversation = self.conversation
        if name:
            conversation.model = self._runner.run(pick(conversation.client, name))
        for entry in self._runner.run(models(conversation.client)):
            click.echo(f"{'*' if entry['id'] == conversation.model else ' '} {entry['id']}")

    def _system(self, text: str) -> None:
        self.conversation.system = text or self.conversation.system
        click.echo(self.conversation.system or "no system prompt")

    def _clear(self, rest: str) -> None:
        self.conversation.messages = []

    def _help(self, rest: str) -> None:
        click.echo(HELP)


async def answer(conversation: Conversation, text: str) -> None:
    """Print the answer as it comes, and a line on stderr where it is not whole."""
    filtered = sys.stdout.isatty()
    async with aclosing(conversation.ask(text)) as pieces:
        async for piece in pieces:
            click.echo(piece.translate(CONTROLS) if filtered else piece, nl=False)
    click.echo()
    if conversation.finish_reason == "length":
        click.echo("(cut off: the model's context, or its limit of tokens, is full)", err=True)


def _read() -> str | None:
    """One entry, of several lines between triple quotes; None at the end of the input."""
    try:
        text = input(">>> ")
        if not text.startswith(QUOTES):
            return text
        text = text.removeprefix(QUOTES)
        while not text.rstrip().endswith(QUOTES):
            text += "\n" + input("... ")
        return text.rstrip().removesuffix(QUOTES)
    except EOFError:
        click.echo()
        return None
    except KeyboardInterrupt:
        click.echo("\nCtrl-D or /bye ends")
        return ""


def _load_history() -> None:
    path = home() / "chat_history"
    if readline and path.exists():
        readline.read_history_file(path)


def _save_history() -> None:
    path = home() / "chat_history"
    if readline:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)  # what people ask is theirs
        readline.set_history_length(HISTORY)
        readline.write_history_file(path)

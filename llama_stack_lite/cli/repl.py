"""The prompt of `llama-lite chat`: lines in, answers out, and what starts with a slash is a command."""

import asyncio
import importlib
import importlib.util
import sys
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import Protocol

import click

from llama_stack_lite.config import home
from llama_stack_lite.errors import StackError

from .conversation import Note, Question

# absent on Windows; once imported, `input` edits lines with it
readline = importlib.import_module("readline") if importlib.util.find_spec("readline") else None

HISTORY = 1000  # lines kept
QUOTES = '"""'
HELP = """\
/model [name]   show the models, or switch to one
/system [text]  show the system prompt, or set it
/new            begin anew: what was said is forgotten, as by /clear
/help           this list
/bye            end, as Ctrl-D does
\"\"\"             begins and ends an entry of several lines
Ctrl-C          stops the answer"""
# a model must not drive the terminal; newline and tab are all that text needs
CONTROLS = {code: None for code in (*range(32), *range(127, 160)) if code not in (9, 10)}


Pieces = AsyncGenerator[str | Note, None]


class Talk(Protocol):
    """A conversation, with a model or with an agent."""

    model: str
    system: str | None
    finish_reason: str | None

    @property
    def questions(self) -> Sequence[Question]:
        """Calls that wait for the user's word once an answer has ended; `reply` goes on with it."""
        ...

    def ask(self, text: str) -> Pieces: ...

    def reply(self, answers: list[bool]) -> Pieces: ...

    def clear(self) -> None: ...

    async def choices(self) -> list[str]: ...

    async def switch(self, name: str) -> None: ...


class Repl:
    """Ctrl-C stops the answer and leaves the prompt; Ctrl-D or /bye ends."""

    def __init__(self, conversation: Talk, runner: asyncio.Runner) -> None:
        self.conversation = conversation
        self._runner = runner
        self._commands: dict[str, Callable[[str], None]] = {
            "/model": self._model,
            "/system": self._system,
            "/clear": self._clear,
            "/new": self._clear,
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
            converse(self.conversation, text, self._runner)

    def _model(self, name: str) -> None:
        conversation = self.conversation
        if name:
            self._runner.run(conversation.switch(name))
        for each in self._runner.run(conversation.choices()):
            click.echo(f"{'*' if each == conversation.model else ' '} {each}")

    def _system(self, text: str) -> None:
        self.conversation.system = text or self.conversation.system
        click.echo(self.conversation.system or "no system prompt")

    def _clear(self, rest: str) -> None:
        self.conversation.clear()

    def _help(self, rest: str) -> None:
        click.echo(HELP)


def converse(conversation: Talk, text: str, runner: asyncio.Runner) -> None:
    """Print the answer as it comes, and a line on stderr where it is not whole; ask what has to be asked."""
    runner.run(_show(conversation, conversation.ask(text)))
    while questions := conversation.questions:
        answers = [_confirmed(each) for each in questions]
        runner.run(_show(conversation, conversation.reply(answers)))
    if conversation.finish_reason == "length":
        click.echo("(cut off: the model's context, or its limit of tokens, is full)", err=True)


async def _show(conversation: Talk, answer: Pieces) -> None:
    """Print what is said on stdout, and notes between on stderr, each on a line of its own."""
    filtered = sys.stdout.isatty()
    noted = within = False
    async with aclosing(answer) as pieces:
        async for piece in pieces:
            if isinstance(piece, Note):
                click.echo("\n" if within else "", nl=False)
                click.secho(_line(piece.text), dim=True, err=True)
                noted, within = True, False
            else:
                click.echo(piece.translate(CONTROLS) if filtered else piece, nl=False)
                within = True
    if within or not (noted or conversation.questions):
        click.echo()


def _confirmed(question: Question) -> bool:
    """The user's word on a call: no, unless they say yes; where nobody can be asked, no."""
    asked = _line(f"Run {question.name}({question.arguments})? [y/N] ")
    if not sys.stdin.isatty():
        click.echo(f"{asked}no: nobody is there to ask", err=True)
        return False
    try:
        return input(asked).strip().lower() in ("y", "yes")
    except EOFError:
        click.echo()
        return False


def _line(text: str) -> str:
    """A text on one line, that leaves the terminal alone."""
    return text.translate({**CONTROLS, 9: " ", 10: " "})


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

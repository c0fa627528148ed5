"""Prompts for models that were trained on no tool format: to fill in arguments, and to answer from a result.

The function is chosen by `router`, the arguments are decoded under the grammar of `copying`: the model
does what a small one can do, which is to point at words of the request.
"""

import json
import re
from collections.abc import Sequence
from typing import Any

from llama_stack_lite.api.inference import FunctionDefinition, Message
from llama_stack_lite.errors import InvalidRequest

_TASK = (
    "You fill in the arguments of a function from the request of the user. Answer with JSON. "
    "Copy the words of the request."
)
_HEAD = re.compile(r"^\[\d+\] .*\n", re.MULTILINE)
_SMALL_WORDS = {"the", "a", "is", "it", "yes", "of", "in", "at", "are", "was", "to"}
_EXAMPLES: tuple[tuple[str, str, dict[str, Any]], ...] = (
    (
        "get_time(city) Current time in a city.",
        "What time is it in Lima right now?",
        {"city": "Lima"},
    ),
    (
        "convert_currency(amount, currency) Convert money.",
        "How much is 40 dollars in euros?",
        {"amount": 40, "currency": "euros"},
    ),
    (
        "add_task(title, due) Add a task to the to-do list.",
        "Put buy milk on my list for Sunday at 5 pm.",
        {"title": "buy milk", "due": "Sunday at 5 pm"},
    ),
    (
        "math(expression) Do arithmetic.",
        "How much is 6 times 9?",
        {"expression": "6 times 9"},
    ),
    (
        "search_web(query) Search the web.",
        "Search the web for cheap flights to Malta.",
        {"query": "cheap flights to Malta"},
    ),
    (
        "reserve(purpose, start) Reserve a room.",
        "I need a room for the design workshop next Tuesday at 11 am",
        {"purpose": "design workshop", "start": "next Tuesday at 11 am"},
    ),
)


def arguments_messages(function: FunctionDefinition, text: str) -> list[Message]:
    """The conversation whose answer is the arguments, as JSON; decode it under `arguments_grammar`.

    All but the last message is the same for every function, so its cache entry serves them all.
    """
    messages = [Message(role="system", content=_TASK)]
    for signature, request, arguments in _EXAMPLES:
        messages += [
            Message(role="user", content=_question(signature, request)),
            Message(role="assistant", content=json.dumps(arguments)),
        ]
    names = ", ".join(function.schema_of_arguments().get("properties", {}))
    signature = f"{function.name}({names}) {function.description or ''}".rstrip()
    return [*messages, Message(role="user", content=_question(signature, text))]


def _question(signature: str, request: str) -> str:
    return f"Function: {signature}\nRequest: {request}"


def last_request(messages: Sequence[Message]) -> str:
    """The text of the last user message: all that is looked at to choose a function and its arguments.

    Raises `InvalidRequest` where there is none.
    """
    return messages[_last_user(messages)].text()


def _last_user(messages: Sequence[Message]) -> int:
    for at in reversed(range(len(messages))):
        if messages[at].role == "user":
            return at
    raise InvalidRequest("this model needs a user message to call a tool or to answer for", param="messages")


def has_result(messages: Sequence[Message]) -> bool:
    """Whether the conversation ends with a tool's result, so that the next turn is the answer."""
    return messages[-1].role == "tool"


def results(messages: Sequence[Message]) -> list[str]:
    """The texts of the tool results since the last user message."""
    found = (message for message in messages[_last_user(messages) :] if message.role == "tool")
    return [text for message in found if (text := message.text().strip())]


def sentences(messages: Sequence[Message]) -> list[str]:
    """The sentences and lines of the tool results, to find the one that answers the request.

    Lines such as `[1] handbook.md` only say where a passage is from.
    """
    texts = (_HEAD.sub("", text) for text in results(messages))
    parts = (part.strip() for text in texts for part in re.split(r"(?<=[.!?])\s+|\n+", text))
    return [part for part in parts if part]


def answer_prompt(messages: Sequence[Message], *, passage: str | None = None) -> tuple[str, list[str]]:
    """A plain completion prompt that answers the last request from the tool results, and its stops.

    `passage` replaces the results: a model this small finds a fact in one sentence, and rarely in nine.
    The system prompt and earlier turns are left out, as they only mislead it.
    """
    context = "\n\n".join(results(messages)) if passage is None else passage
    question = " ".join(last_request(messages).split())
    return f"Context: {context}\n\nQuestion: {question}\nAnswer:", ["\n"]


def grounded(answer: str, *, passage: str, request: str) -> str:
    """The answer if all its words come from the passage or the request, and one is news; else the passage."""
    words, asked = _words(answer), _words(request)
    return answer if words <= _words(passage) | asked | _SMALL_WORDS and words - asked else passage


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower()))

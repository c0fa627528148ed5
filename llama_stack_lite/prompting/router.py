"""Which function a request needs, decided without asking the model to name one.

A small model's own choice follows the names it likes, not the request. What works is to compare meanings:
the embedding of the request with that of each function; or, without an embedding model, to turn the
question round and ask how likely the request is once the function is given.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from llama_stack_lite.api.inference import FunctionDefinition

Embed = Callable[[list[str]], Awaitable[list[list[float]]]]
Score = Callable[[str, str], Awaitable[float]]

# A request is plain chat if one of these is nearer than every function by MARGIN, and is near at all.
CHAT = (
    "Hello!",
    "How are you today?",
    "Thanks, that was great.",
    "Goodbye.",
    "Who are you and what can you do?",
    "Tell me a joke.",
    "Write a poem for me.",
    "Tell me a story.",
    "Explain to me what a word means.",
    "I feel sad.",
    "Give me some ideas.",
    "Recommend something to read.",
)
MARGIN = 0.05
NEAR = 0.15
NONE = "none"  # the key of plain chat among the scores


@dataclass(frozen=True, slots=True)
class Choice:
    """The function to call, None for plain chat; `scores` by function name and `none`: higher is nearer."""

    function: FunctionDefinition | None
    scores: dict[str, float]


class Router:
    """Chooses by cosine similarity; keeps the vectors of the functions it has seen, at most `room` of them.

    `embed` turns texts into unit vectors, by an embedding model made for comparing sentences.
    """

    def __init__(self, embed: Embed, *, room: int = 4096) -> None:
        self._embed = embed
        self._room = room
        self._vectors: OrderedDict[str, list[float]] = OrderedDict()

    async def choose(self, functions: Sequence[FunctionDefinition], text: str, *, must_call: bool) -> Choice:
        """Choose the function for a user's message; with `must_call` there always is one."""
        texts = [_describe(function) for function in functions]
        known = await self._known([*texts, *CHAT])
        [request] = await self._embed([text or " "])
        scores = {
            function.name: _dot(request, known[described])
            for function, described in zip(functions, texts, strict=True)
        }
        best = max(functions, key=lambda function: scores[function.name])
        none = max(_dot(request, known[example]) for example in CHAT)
        chat = none > max(scores[best.name] + MARGIN, NEAR)
        return Choice(None if chat and not must_call else best, {**scores, NONE: none})

    async def _known(self, texts: list[str]) -> dict[str, list[float]]:
        found = {text: self._vectors[text] for text in texts if text in self._vectors}
        if new := [text for text in dict.fromkeys(texts) if text not in found]:
            found.update(zip(new, await self._embed(new), strict=True))
        for text in texts:
            self._vectors[text] = found[text]
            self._vectors.move_to_end(text)
        while len(self._vectors) > self._room:
            self._vectors.popitem(last=False)
        return found


async def choose_by_likelihood(
    functions: Sequence[FunctionDefinition], text: str, *, score: Score, must_call: bool
) -> Choice:
    """Choose the function that makes the user's message most likely: a noisy channel.

    `score(prompt, continuation)` is the log probability of the continuation, summed over its tokens.
    """
    prompts = [_channel(function.name, function.description) for function in functions]
    names = [function.name for function in functions]
    if not must_call:
        prompts.append(_channel("chat", "Talk, explain, joke, write; no function is needed."))
        names.append(NONE)
    likelihoods = await asyncio.gather(*(score(prompt, f" {text.strip()}\n") for prompt in prompts))
    scores = dict(zip(names, likelihoods, strict=True))
    best = max(names, key=scores.__getitem__)
    return Choice(next((function for function in functions if function.name == best), None), scores)


async def nearest(texts: list[str], request: str, *, embed: Embed) -> str:
    """The text whose meaning is closest to the request's; there must be one at least."""
    if len(texts) == 1:
        return texts[0]
    wanted, *vectors = await embed([request or " ", *texts])
    closeness = [_dot(wanted, vector) for vector in vectors]
    return texts[closeness.index(max(closeness))]


def _describe(function: FunctionDefinition) -> str:
    return f"{function.name.replace('_', ' ')}: {function.description or ''}".rstrip(": ")


def _channel(name: str, description: str | None) -> str:
    return f"Function: {name}\nPurpose: {description or name}\nExample of a user's request:"


def _dot(left: list[float], right: list[float]) -> float:
    return sum(a * b for a, b in zip(left, right, strict=True))

"""One line for each chunk, written by a chat model, that says where in its document it stands."""

import asyncio
from collections.abc import Iterator, Sequence

from llama_stack_lite import answer, enforcement
from llama_stack_lite.api.inference import ChatRequest, Message
from llama_stack_lite.api.vector_stores import ContextualOptions
from llama_stack_lite.errors import ContextOverflow, InvalidRequest, StackError, UpstreamError
from llama_stack_lite.stack import Model, Stack

from .splitting import PROSE, Measured, cut

LONGEST = 60  # tokens of a line
AT_ONCE = 4  # lines that are asked for at a time
DOCUMENT = 6000  # characters of the document that are shown, at most: they are read for every chunk
CHARACTERS = 3  # of a token, at least as a rule
PARAM = "chunking_strategy.contextual"
PROMPT = """<document>
{document}
</document>
This is a passage of it:
<passage>
{chunk}
</passage>
Say in one short sentence of what the passage is about and where in the document it stands, so that a search \
can find it. Answer with this sentence only."""


def check(stack: Stack, options: ContextualOptions) -> None:
    """Raise `InvalidRequest`, naming the field, where no model can write, or its prompt has no chunk."""
    _model(stack, options)
    if options.prompt is not None and "{chunk}" not in options.prompt:
        raise InvalidRequest(
            "the prompt needs `{chunk}` in it, and may have `{document}`", param=f"{PARAM}.prompt"
        )


def _model(stack: Stack, options: ContextualOptions) -> Model:
    name = options.model or stack.config.defaults.model
    if not name:
        raise InvalidRequest(
            "the distribution has no `defaults.model`, so say which model is to write the lines",
            param=f"{PARAM}.model",
        )
    try:
        return stack.model(name, "chat")
    except StackError as error:
        raise InvalidRequest(str(error), param=f"{PARAM}.model", code=error.code) from error


async def lines(stack: Stack, texts: Sequence[str], options: ContextualOptions) -> list[str]:
    """A line for each text of a document, which together are the document.

    Raises what the model raises, and `InvalidRequest` where a shield refuses: no chunk goes without its line.
    """
    model = _model(stack, options)
    prompt = options.prompt or PROMPT
    found = [""] * len(texts)
    waiting = iter(range(len(texts)))

    async def write() -> None:
        for index in waiting:
            found[index] = await _line(stack, model, texts, index, prompt)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(AT_ONCE):
                group.create_task(write())
    except* StackError as errors:
        first = next(_leaves(errors))
    else:
        return found
    raise first


def _leaves(errors: BaseExceptionGroup[StackError]) -> Iterator[StackError]:
    for error in errors.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error


async def _line(stack: Stack, model: Model, texts: Sequence[str], index: int, prompt: str) -> str:
    limit = model.card.context_length
    room = DOCUMENT
    if limit:
        room = min(room, (limit - LONGEST) * CHARACTERS - len(prompt) - len(texts[index]))
    while True:
        try:
            return await _asked(stack, model, prompt, texts[index], surroundings(texts, index, room))
        except ContextOverflow:
            if room <= 0:
                raise
            room //= 2


async def _asked(stack: Stack, model: Model, prompt: str, chunk: str, document: str) -> str:
    # in one pass, so that what a document says is never taken for a place to fill in
    before, *others = prompt.split("{document}")
    filled = document.join(part.replace("{chunk}", chunk) for part in [before, *others])
    request = ChatRequest(
        model=model.id,
        messages=[Message(role="user", content=filled)],
        max_completion_tokens=LONGEST,
        temperature=0,
    )
    said = await answer.chat_completion(enforcement.chat(stack, request))
    choice = said.choices[0]
    if choice.finish_reason == "content_filter" or choice.message.refusal:
        why = choice.message.refusal or "refused"
        raise InvalidRequest(f"no line could be written for {chunk[:40]!r}: {why}", code="content_filter")
    line = " ".join((choice.message.content or "").split())
    if not line:
        raise UpstreamError(f"`{model.id}` wrote no line for {chunk[:40]!r}")
    return line


def surroundings(texts: Sequence[str], index: int, room: int) -> str:
    """The document around one of its texts, in at most `room` characters: its beginning, and what is near."""
    if room <= 0:
        return ""
    if sum(map(len, texts)) + 2 * len(texts) <= room:
        return "\n\n".join(texts)
    start = "\n\n".join(texts[: 1 + room // 200])[: room // 2]
    before = texts[index - 1][-room // 4 :] if index else ""
    after = texts[index + 1][: room // 4] if index + 1 < len(texts) else ""
    return "\n[...]\n".join(part for part in (start, before, after) if part)


def shortened(line: str, starts: Sequence[int], room: int) -> str:
    """The line in at most `room` of its tokens: whole sentences where they fit, else words."""
    if room <= 0 or not line:
        return ""
    return line[: cut(Measured(line, starts), room, PROSE)[0][1]].rstrip()

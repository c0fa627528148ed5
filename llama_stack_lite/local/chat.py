"""A chat turn on a local engine: which prompt, under which grammar, and what the tokens come to mean."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial

from llama_stack_lite.api.inference import (
    ChatChunk,
    ChatRequest,
    ChunkChoice,
    Delta,
    FunctionDefinition,
    Logprobs,
    TokenDetails,
    TokenLogprob,
    Usage,
)
from llama_stack_lite.errors import InvalidRequest
from llama_stack_lite.prompting import assisted, constraints
from llama_stack_lite.prompting.copying import arguments_grammar
from llama_stack_lite.prompting.formats import format_for
from llama_stack_lite.prompting.images import has_images
from llama_stack_lite.prompting.router import Choice, Router, choose_by_likelihood, nearest
from llama_stack_lite.stack import Stack

from .engine import Job
from .readers import Arguments, Calls, Grounded, Reader, Text, joined
from .served import Prompt, Served, check_supported, merged

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """What the model is asked, and how to read what it says."""

    prompt: Prompt
    reader: Callable[[], Reader]
    grammar: str | None = None
    shows_marks: bool = False  # control tokens are text to the reader, as they mark calls
    copies: bool = False  # nothing is gained by chance


class Chat:
    """Answers chat requests with one served model."""

    def __init__(self, served: Served, stack: Stack) -> None:
        self.served = served
        self.stack = stack
        self.router = Router(self._embed)

    async def answer(self, request: ChatRequest) -> AsyncGenerator[ChatChunk, None]:
        """Yield the chunks of all `n` choices as they come, then the usage."""
        check_supported(request)
        turn = await self._turn(request)
        details = TokenDetails(cached_tokens=0)
        usage = Usage(prompt_tokens=turn.prompt.length, prompt_tokens_details=details)
        choices = [self._choice(request, turn, index, usage) for index in range(request.n)]
        async with aclosing(merged(choices) if len(choices) > 1 else choices[0]) as pieces:
            async for piece in pieces:
                yield ChatChunk(
                    choices=[piece], prompt_tokens=usage.prompt_tokens, cached_tokens=details.cached_tokens
                )
        usage.total_tokens = usage.prompt_tokens + usage.completion_tokens
        yield ChatChunk(choices=[], usage=usage)

    async def count(self, request: ChatRequest) -> int:
        """How many tokens the prompt has that is made of the request."""
        check_supported(request)
        return (await self._turn(request)).prompt.length

    async def _turn(self, request: ChatRequest) -> Turn:
        functions = request.offered()
        if has_images(request.messages):
            return await self._seen(request, functions)
        answers = assisted.has_result(request.messages) and not (functions and request.must_call())
        if answers and self.served.card.tool_result == "context":
            return await self._from_result(request)
        if functions and self.served.card.tool_calling == "assisted":
            return await self._assisted(request, functions)
        return await asyncio.to_thread(self._native, request, functions)

    async def _seen(self, request: ChatRequest, functions: list[FunctionDefinition]) -> Turn:
        """With images, which take time to read, and which only the model's own template can show."""
        sight = self.served.sight
        if sight and functions and self.served.card.tool_calling == "assisted":
            raise InvalidRequest(
                "tools: this model's calls are made from text alone; ask about an image without `tools`",
                param="tools",
            )
        work = partial(self._native, request, functions)
        return await asyncio.get_running_loop().run_in_executor(sight.thread if sight else None, work)

    async def _assisted(self, request: ChatRequest, functions: list[FunctionDefinition]) -> Turn:
        """For a model trained on no format: the call is chosen for it, and it copies the arguments."""
        said = assisted.last_request(request.messages)
        choice = await self._choose(functions, said, must_call=request.must_call())
        log.info("tool choice for %s: %s", self.served.card.id, choice.scores)
        if choice.function is None:
            return await asyncio.to_thread(self._native, request, [])
        return await asyncio.to_thread(self._filled_in, choice.function, said)

    async def _choose(self, functions: list[FunctionDefinition], said: str, *, must_call: bool) -> Choice:
        if len(functions) == 1 and must_call:
            return Choice(functions[0], {})
        if self.stack.config.defaults.embedding_model:
            return await self.router.choose(functions, said, must_call=must_call)
        return await choose_by_likelihood(functions, said, score=self.served.score, must_call=must_call)

    async def _embed(self, texts: list[str]) -> list[list[float]]:
        model = self.stack.model(self.stack.config.defaults.embedding_model or "", "embedding")
        return (await model.provider.embed(model.name, texts)).vectors

    def _filled_in(self, function: FunctionDefinition, said: str) -> Turn:
        messages = assisted.arguments_messages(function, said)
        return Turn(
            prompt=self.served.prompt(messages, None),
            grammar=arguments_grammar(function.schema_of_arguments(), said),
            reader=lambda: Arguments(function),
            copies=True,
        )

    async def _from_result(self, request: ChatRequest) -> Turn:
        """For a model that answers best from plain text: the passage that is nearest, and the question."""
        question = assisted.last_request(request.messages)
        sentences = assisted.sentences(request.messages)
        passage = None
        if sentences and self.stack.config.defaults.embedding_model:
            passage = await nearest(sentences, question, embed=self._embed)
        text, stops = assisted.answer_prompt(request.messages, passage=passage)
        stops += request.stops()
        grammar = constraints.answer_in(request.response_format)
        prompt = Prompt(self.served.vocab.prompt([(text, False)]))
        if passage is None or grammar:
            return Turn(prompt=prompt, grammar=grammar, reader=lambda: Text([] if grammar else stops))
        return Turn(prompt=prompt, reader=lambda: Grounded(stops, passage=passage, request=question))

    def _native(self, request: ChatRequest, functions: list[FunctionDefinition]) -> Turn:
        """The model's own template, and its own format of calls where it may call."""
        tools = [tool for tool in request.tools or [] if tool.function in functions] or None
        prompt = self.served.prompt(request.messages, tools)
        stops = [*request.stops(), *self.served.template.stops]
        if not functions:
            return Turn(
                prompt=prompt,
                grammar=constraints.answer_in(request.response_format),
                reader=lambda: Text(stops),
            )
        if request.response_format and not request.must_call():
            raise InvalidRequest(
                "response_format: this model's calls are JSON too, so give `tools` or a `response_format`, "
                "or let `tool_choice` require a call",
                param="response_format",
            )
        form = format_for(self.served.card.tool_calling or "assisted")
        grammar = form.grammar(
            functions,
            must_call=request.must_call(),
            parallel=request.parallel_tool_calls,
            specials=self.served.vocab.specials,
        )
        return Turn(
            prompt=prompt, grammar=grammar, shows_marks=True, reader=lambda: Calls(form, functions, stops)
        )

    async def _choice(
        self, request: ChatRequest, turn: Turn, index: int, usage: Usage
    ) -> AsyncGenerator[ChunkChoice, None]:
        job = self._job(request, turn, index)
        reader = turn.reader()
        scored: list[TokenLogprob] = []
        opening: Delta = {"role": "assistant"}
        said: Delta = {}
        async with aclosing(self.served.engine.generate(job)) as steps:
            async for step in steps:
                piece = b""
                if step.token is not None:
                    usage.completion_tokens += 1
                    piece = self._piece(step.token, turn)
                    scored += [self.served.logprob(step)] if step.logprob is not None else []
                if usage.prompt_tokens_details:
                    usage.prompt_tokens_details.cached_tokens = step.cached
                delta, finish = reader.feed(piece, step.finish)
                said = joined(said, delta)
                if (said and not step.more) or finish:
                    logprobs = Logprobs(content=scored) if request.logprobs else None
                    delta = {**opening, **said}
                    stop = reader.text.stop if reader.text.stop in request.stops() else None
                    yield ChunkChoice(
                        index=index, delta=delta, logprobs=logprobs, finish_reason=finish, stop_reason=stop
                    )
                    opening, said, scored = {}, {}, []
                if finish:
                    return

    def _job(self, request: ChatRequest, turn: Turn, index: int) -> Job:
        job = self.served.job(turn.prompt, request, index=index, limit=request.limit())
        sampling = job.sampling
        if turn.copies and request.temperature is None:
            sampling = replace(sampling, temperature=0.0)
        top = request.top_logprobs or 0 if request.logprobs else None
        return replace(job, grammar=turn.grammar, top_logprobs=top, sampling=sampling)

    def _piece(self, token: int, turn: Turn) -> bytes:
        """A token's bytes; control tokens are silent, except where they mark a call."""
        if token in self.served.vocab.controls and not turn.shows_marks:
            return b""
        return self.served.vocab.pieces[token]

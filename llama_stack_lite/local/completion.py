"""Plain completions: prompts in, continuations out, with or without the prompt itself and its scores."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace

from llama_stack_lite.api.inference import (
    Completion,
    CompletionChoice,
    CompletionLogprobs,
    CompletionRequest,
    TokenDetails,
    Usage,
)
from llama_stack_lite.errors import InvalidRequest
from llama_stack_lite.prompting import constraints

from .engine import Job, Step
from .served import Prompt, Served, check_supported, merged
from .text import TextStream


async def complete(served: Served, request: CompletionRequest) -> AsyncGenerator[Completion, None]:
    """Answer every prompt `n` times; choices are numbered prompt by prompt."""
    check_supported(request)
    if request.suffix:
        raise InvalidRequest("suffix: this engine does not fill in the middle", param="suffix")
    if request.best_of not in (None, request.n):
        raise InvalidRequest("best_of: only a value equal to n is supported", param="best_of")
    jobs = await asyncio.to_thread(_jobs, served, request)
    usage = Usage(prompt_tokens=sum(len(job.prompt) for job in jobs[:: request.n]))
    cached = [0] * len(jobs)
    choices = [_choice(served, request, job, index, usage, cached) for index, job in enumerate(jobs)]
    async with aclosing(merged(choices)) as pieces:
        async for piece in pieces:
            yield Completion(choices=[piece])
    usage.total_tokens = usage.prompt_tokens + usage.completion_tokens
    usage.prompt_tokens_details = TokenDetails(cached_tokens=sum(cached[:: request.n]))
    yield Completion(choices=[], usage=usage)


def _jobs(served: Served, request: CompletionRequest) -> list[Job]:
    grammar = constraints.answer_in(request.response_format)
    jobs = []
    for prompt in request.prompts():
        tokens = _tokens(served, prompt)
        for index in range(request.n):
            job = served.job(Prompt(tokens), request, index=index, limit=request.max_tokens)
            jobs.append(
                replace(
                    job,
                    grammar=grammar,
                    top_logprobs=request.logprobs,
                    score_prompt=request.echo and request.logprobs is not None,
                )
            )
    return jobs


def _tokens(served: Served, prompt: str | list[int]) -> list[int]:
    if isinstance(prompt, str):
        tokens = served.vocab.prompt([(prompt, True)])
        if not tokens:
            raise InvalidRequest(
                "prompt: is empty, and this model has no token to begin with", param="prompt"
            )
        return tokens
    if any(token >= served.vocab.size for token in prompt):
        raise InvalidRequest(
            f"prompt: token ids of this model end at {served.vocab.size - 1}", param="prompt"
        )
    return prompt


async def _choice(
    served: Served, request: CompletionRequest, job: Job, index: int, usage: Usage, cached: list[int]
) -> AsyncGenerator[CompletionChoice, None]:
    text = TextStream(request.stops())
    offset, said = 0, ""
    scores: CompletionLogprobs | None = None
    if request.echo and not job.score_prompt:
        echoed = b"".join(served.vocab.pieces[token] for token in job.prompt).decode("utf-8", "replace")
        offset = len(echoed)
        yield CompletionChoice(index=index, text=echoed)
    async with aclosing(served.engine.generate(job)) as steps:
        async for step in steps:
            piece = served.vocab.pieces[step.token] if step.token is not None else b""
            usage.completion_tokens += step.token is not None and not step.prompt
            cached[index] = step.cached
            if request.logprobs is not None:
                scores = CompletionLogprobs.joined(scores, _logprobs(served, step, offset + len(said)))
            if step.prompt:
                said += piece.decode("utf-8", "replace")
            else:
                said += text.feed(piece, final=step.finish is not None)
            finish = "stop" if text.stopped else step.finish
            if finish or (said or scores) and not step.more:
                yield CompletionChoice(index=index, text=said, logprobs=scores, finish_reason=finish)
                offset, said, scores = offset + len(said), "", None
            if text.stopped:
                return


def _logprobs(served: Served, step: Step, offset: int) -> CompletionLogprobs | None:
    if step.token is None:
        return None
    pieces = served.vocab.pieces
    top = {pieces[token].decode("utf-8", "replace"): logprob for token, logprob in step.top}
    return CompletionLogprobs(
        tokens=[pieces[step.token].decode("utf-8", "replace")],
        token_logprobs=[step.logprob],
        top_logprobs=[top if step.logprob is not None else None],
        text_offset=[offset],
    )

"""How often greedy answers are the same alone and among others: `python -m benchmarks.determinism`."""

import argparse
import asyncio
import random

import httpx

from benchmarks.support import ours, table

WORDS = [
    "river",
    "stone",
    "market",
    "lantern",
    "winter",
    "music",
    "garden",
    "letter",
    "bridge",
    "harbour",
    "forest",
    "engine",
    "window",
]
ASKED = [
    "Write a story about a {0} and a {1}.",
    "Explain to a child what a {0} is, and why a {1} is not one.",
    "List ten things that one can do with a {0} near a {1}.",
    "Continue: once there was a {0}, and behind it a {1}",
]


def prompts(count: int) -> list[str]:
    """Prompts of different lengths, from a dozen tokens to some hundred."""
    source = random.Random(1)
    found = []
    for number in range(count):
        filler = " ".join(source.choices(WORDS, k=source.choice([0, 10, 60, 200])))
        found.append(filler + " " + source.choice(ASKED).format(*source.sample(WORDS, 2)) + f" ({number})")
    return found


async def ask(http: httpx.AsyncClient, model: str, prompt: str, length: int) -> list[str]:
    body = {
        "model": model,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": length,
        "temperature": 0,
        "logprobs": True,
    }
    reply = (await http.post("/chat/completions", json=body)).raise_for_status().json()
    return [token["token"] for token in reply["choices"][0]["logprobs"]["content"]]


async def compare(url: str, model: str, *, count: int, together: int, length: int) -> str:
    """Ask one after the other, again, and in groups; a Markdown table of what stayed the same."""
    async with httpx.AsyncClient(base_url=url, timeout=600) as http:
        asked = prompts(count)
        alone = [await ask(http, model, prompt, length) for prompt in asked]
        again = [await ask(http, model, prompt, length) for prompt in asked]
        crowd: list[list[str]] = []
        for start in range(0, count, together):
            group = asked[start : start + together]
            crowd += await asyncio.gather(*(ask(http, model, prompt, length) for prompt in group))
    rows = []
    for name, others in (("alone, again", again), (f"among {together}", crowd)):
        same = sum(one == other for one, other in zip(alone, others, strict=True))
        agreed = sum(_agreed(one, other) for one, other in zip(alone, others, strict=True))
        rows.append([name, f"{same}/{count}", f"{agreed / sum(map(len, alone)):.3f}"])
    return table(["compared with alone", "same answers", "tokens before the first difference"], rows)


def _agreed(one: list[str], other: list[str]) -> int:
    return next(
        (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m", help="a name, or a GGUF file")
    parser.add_argument("--count", type=int, default=48)
    parser.add_argument("--together", type=int, default=16)
    parser.add_argument("--length", type=int, default=48, help="tokens of an answer")
    parser.add_argument("--flash", action="store_true", help="with flash attention")
    options = parser.parse_args()
    count, together, length = options.count, options.together, options.length
    flash = {"flash_attention": "true"} if options.flash else {}
    with ours(options.model, slots=together, context=1024, **flash) as server:
        shown = compare(server.url, server.model, count=count, together=together, length=length)
        print(asyncio.run(shown))


if __name__ == "__main__":
    main()

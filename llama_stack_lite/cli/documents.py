"""`llama-lite ingest` and `llama-lite search`: documents into a vector store, and passages out of it."""

import json
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import httpx
from click.exceptions import Exit

from llama_stack_lite.errors import NotFound, StackError

from .conversation import post
from .gathering import Choice, gather
from .ingesting import Ingest, store_named
from .output import json_option
from .passages import shown
from .progress import Progress, interrupted, report
from .reaching import distribution_option, reached, url_option

MB = 2**20
COMPARED = re.compile(r"^(?P<key>[^=!<>]+?)\s*(?P<sign>!=|>=|<=|=|>|<)\s*(?P<value>.*)$", re.S)
SIGNS = {"=": "eq", "!=": "ne", ">": "gt", ">=": "gte", "<": "lt", "<=": "lte"}
Value = str | bool | float

store_option = click.option("--store", required=True, metavar="NAME", help="Vector store, by name or id.")
key_option = click.option(
    "--api-key", envvar="OPENAI_API_KEY", metavar="KEY", help="Key of the server.  [env: OPENAI_API_KEY]"
)


def _value(text: str) -> Value:
    """An attribute's value as its text means it: true, a number, or text, which quotes keep text."""
    if len(text) > 1 and text[0] == text[-1] == '"':
        return text[1:-1]
    if text in ("true", "false"):
        return text == "true"
    return float(text) if re.fullmatch(r"-?\d+(\.\d+)?", text) else text


def _attributes(
    context: click.Context, parameter: click.Parameter, values: Sequence[str]
) -> dict[str, Value]:
    found: dict[str, Value] = {}
    for each in values:
        key, sign, value = each.partition("=")
        if not sign or not key:
            raise click.BadParameter(f"{each!r} is no `key=value`")
        if key in ("path", "sha256"):
            raise click.BadParameter(f"`{key}` is what `ingest` itself writes")
        found[key] = _value(value)
    return found


def _filters(
    context: click.Context, parameter: click.Parameter, values: Sequence[str]
) -> dict[str, Any] | None:
    found: list[dict[str, Any]] = []
    for each in values:
        match = COMPARED.match(each)
        if not match:
            raise click.BadParameter(f"{each!r} is no `key=value`; other signs are {' '.join(SIGNS)}")
        found.append({"type": SIGNS[match["sign"]], "key": match["key"], "value": _value(match["value"])})
    if len(found) > 1:
        return {"type": "and", "filters": found}
    return found[0] if found else None


def _chunking(context: click.Context, parameter: click.Parameter, value: str | None) -> dict[str, Any] | None:
    if value is None:
        return None
    if value == "auto":
        return {"type": "auto"}
    if value == "contextual":
        return {"type": "contextual", "contextual": {}}
    match = re.fullmatch(r"static:(\d+):(\d+)", value)
    if not match:
        raise click.BadParameter(
            f"{value!r} is none of auto, contextual, static:TOKENS:OVERLAP (such as static:400:100)"
        )
    sizes = {"max_chunk_size_tokens": int(match[1]), "chunk_overlap_tokens": int(match[2])}
    return {"type": "static", "static": sizes}


# ---------------------------------------------------------------- ingest


@click.command()
@click.argument("paths", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@store_option
@click.option(
    "--attribute",
    "attributes",
    multiple=True,
    callback=_attributes,
    metavar="KEY=VALUE",
    help="What searches can filter by; may be given several times.",
)
@click.option("--include", multiple=True, metavar="PATTERN", help="Of folders, only such files: '*.md'.")
@click.option("--exclude", multiple=True, metavar="PATTERN", help="Of folders, no such files.")
@click.option("--max-mb", default=64, show_default=True, help="Of folders, no larger files.")
@click.option(
    "--chunking", callback=_chunking, help="auto, static:400:100 or contextual.  [default: the store's]"
)
@click.option("--embedding-model", metavar="NAME", help="Of a store that is new.  [default: the server's]")
@click.option("--workers", default=4, show_default=True, type=click.IntRange(1, 32), help="Uploads at once.")
@url_option
@key_option
@distribution_option
@json_option
def ingest(
    paths: tuple[Path, ...],
    store: str,
    attributes: dict[str, Value],
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    max_mb: int,
    chunking: dict[str, Any] | None,
    embedding_model: str | None,
    workers: int,
    url: str | None,
    api_key: str | None,
    distribution: str | None,
    as_json: bool,
) -> None:
    """Put files and folders into a vector store, which is made where there is none of that name.

    A second run uploads only what is new or has changed, and replaces that. Hidden files, and those that hold
    no text, are left out of folders. Where no server runs and no --url is given, the distribution `starter`
    is started in this process.
    """
    logging.basicConfig(level="ERROR", format="%(levelname)s %(name)s: %(message)s")
    documents, left = gather(paths, Choice(include, exclude, max_mb * MB))
    with reached(url, distribution, key=api_key) as (runner, client):
        store_id = runner.run(_opened(client, store, chunking, embedding_model))
        with Progress(quiet=as_json) as progress:
            job = Ingest(
                client, store_id, attributes=attributes, chunking=chunking, workers=workers, shown=progress
            )
            try:
                runner.run(job.run(documents))
            except (KeyboardInterrupt, StackError):
                progress.stop()
                click.echo(interrupted(job), err=True)
                raise
    report(store, store_id, job.tally, left, seconds=progress.seconds, as_json=as_json)
    if job.tally.failed:
        raise Exit(1)


async def _opened(
    client: httpx.AsyncClient, name: str, chunking: dict[str, Any] | None, embedding_model: str | None
) -> str:
    """The id of the store, which is made where there is none."""
    found = await store_named(client, name)
    if found:
        return found
    body = {"name": name, "chunking_strategy": chunking, "embedding_model": embedding_model}
    made = await post(client, "vector_stores", {key: value for key, value in body.items() if value})
    return str(made["id"])


# ---------------------------------------------------------------- search


@click.command()
@click.argument("query", nargs=-1, required=True)
@store_option
@click.option(
    "--mode", type=click.Choice(["hybrid", "vector", "keyword"]), default="hybrid", show_default=True
)
@click.option("--limit", default=5, show_default=True, type=click.IntRange(1, 50), help="Passages at most.")
@click.option(
    "--filter",
    "filters",
    multiple=True,
    callback=_filters,
    metavar="KEY=VALUE",
    help="Only files with such attributes; also !=, <, <=, >, >=.",
)
@click.option("--rerank", metavar="MODEL", help="Rank with this model, or `none`.  [default: the server's]")
@url_option
@key_option
@distribution_option
@json_option
def search(
    query: tuple[str, ...],
    store: str,
    mode: str,
    limit: int,
    filters: dict[str, Any] | None,
    rerank: str | None,
    url: str | None,
    api_key: str | None,
    distribution: str | None,
    as_json: bool,
) -> None:
    """Find passages in a vector store.

    Each comes with its score from 0 to 1, its file, and the headings that it stands under.
    """
    logging.basicConfig(level="ERROR", format="%(levelname)s %(name)s: %(message)s")
    text = " ".join(query)
    body = {"query": text, "max_num_results": limit, "search_mode": mode, "filters": filters}
    body["ranking_options"] = {"ranker": rerank} if rerank else {}
    with reached(url, distribution, key=api_key) as (runner, client):
        hits = runner.run(_found(client, store, body))
    if as_json:
        click.echo(json.dumps(hits, indent=2, ensure_ascii=False))
    elif not hits:
        click.echo("Nothing was found.", err=True)
    else:
        click.echo("\n\n".join(shown(number, hit, text) for number, hit in enumerate(hits, start=1)))


async def _found(client: httpx.AsyncClient, store: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    store_id = await store_named(client, store)
    if store_id is None:
        raise NotFound("vector store", store)
    page = await post(client, f"vector_stores/{store_id}/search", body)
    hits: list[dict[str, Any]] = page["data"]
    return hits

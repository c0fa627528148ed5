"""Prompts in versions, of which one is the default."""

import json
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Row, Select, delete, func, insert, select, update

from llama_stack_lite.api.ids import new_id, well_formed
from llama_stack_lite.api.prompts import Prompt, PromptText
from llama_stack_lite.api.responses import InputFile, InputImage, InputText
from llama_stack_lite.errors import InvalidRequest, NotFound

from .store import Store
from .tables import prompts

Value = str | InputText | InputImage | InputFile


async def create(store: Store, text: PromptText) -> Prompt:
    """Keep a new prompt, as version 1 and the default."""
    prompt_id = new_id("pmpt")
    return await store.write(lambda connection: _add(connection, prompt_id, text, version=1, is_default=True))


async def get(store: Store, prompt_id: str, version: int | None = None) -> Prompt:
    """A version of a prompt, or the default one; raises `NotFound`."""
    return await store.read(lambda connection: _get(connection, prompt_id, version))


async def defaults(store: Store) -> list[Prompt]:
    """The default version of every prompt, the oldest prompt first."""
    query = select(prompts).where(prompts.c.is_default).order_by(prompts.c.created_at, prompts.c.id)
    return await store.read(lambda connection: _prompts(connection.execute(query).all()))


async def versions(store: Store, prompt_id: str) -> list[Prompt]:
    """Every version of a prompt, the first one first; raises `NotFound`."""

    def work(connection: Connection) -> list[Prompt]:
        _get(connection, prompt_id)
        return _prompts(connection.execute(_of(prompt_id).order_by(prompts.c.version)).all())

    return await store.read(work)


async def add_version(
    store: Store, prompt_id: str, text: PromptText, *, newest: int | None = None, as_default: bool = True
) -> Prompt:
    """Keep a new version; raises `NotFound`, and `InvalidRequest` where `newest` is not the newest one."""

    def work(connection: Connection) -> Prompt:
        _get(connection, prompt_id, lock=True)
        query = select(func.max(prompts.c.version)).where(prompts.c.id == prompt_id)
        last = connection.execute(query).scalar_one()
        if newest is not None and newest != last:
            raise InvalidRequest(
                f"version: the newest version of this prompt is {last}, not {newest}; read that before",
                param="version",
            )
        if as_default:
            connection.execute(update(prompts).where(prompts.c.id == prompt_id).values(is_default=False))
        return _add(connection, prompt_id, text, version=last + 1, is_default=as_default)

    return await store.write(work)


async def set_default(store: Store, prompt_id: str, version: int) -> Prompt:
    """Make a version the default one; raises `NotFound`."""

    def work(connection: Connection) -> Prompt:
        _get(connection, prompt_id, lock=True)
        found = _get(connection, prompt_id, version)
        is_default = prompts.c.version == version
        connection.execute(update(prompts).where(prompts.c.id == prompt_id).values(is_default=is_default))
        return found.model_copy(update={"is_default": True})

    return await store.write(work)


async def remove(store: Store, prompt_id: str) -> None:
    """Forget a prompt with all its versions; raises `NotFound`."""

    def work(connection: Connection) -> None:
        _get(connection, prompt_id, lock=True)
        connection.execute(delete(prompts).where(prompts.c.id == prompt_id))

    await store.write(work)


async def rendered(
    store: Store,
    prompt_id: str,
    *,
    version: str | int | None = None,
    variables: Mapping[str, Value] | None = None,
    param: str = "prompt",
) -> str:
    """The text of a prompt with its variables filled in, each once: values are never looked into.

    Raises `NotFound`, and `InvalidRequest` naming a variable that is missing, that the prompt does not
    declare, or that is no text; `param` is where the request refers to the prompt.
    """
    try:
        found = await get(store, prompt_id, _number(version, f"{param}.version"))
    except NotFound as error:
        error.param = error.param or f"{param}.id"
        raise
    values = {}
    for name, value in (variables or {}).items():
        place = f"{param}.variables.{name}"
        if name not in found.variables:
            raise InvalidRequest(
                f"{place}: version {found.version} of this prompt has no such variable", param=place
            )
        if isinstance(value, InputImage | InputFile):
            raise InvalidRequest(f"{place}: the variables of a prompt are texts", param=place)
        values[name] = value if isinstance(value, str) else value.text
    if missing := sorted(found.used() - values.keys()):
        place = f"{param}.variables.{missing[0]}"
        raise InvalidRequest(f"{place}: this prompt needs a value here", param=place)
    return found.fill(values)


def _number(version: str | int | None, param: str) -> int | None:
    if isinstance(version, str):
        if not re.fullmatch(r"[1-9][0-9]{0,8}", version):
            raise InvalidRequest(f"{param}: a version is a number, 1 or more", param=param)
        return int(version)
    return version


def _of(prompt_id: str) -> Select[Any]:
    return select(prompts).where(prompts.c.id == prompt_id)


def _get(connection: Connection, prompt_id: str, version: int | None = None, *, lock: bool = False) -> Prompt:
    """A version, or the default one; with `lock`, others who change the prompt wait for this transaction."""
    found: Sequence[Row[Any]] = []
    if well_formed(prompt_id):
        if lock:
            connection.execute(_of(prompt_id).where(prompts.c.version == 1).with_for_update())
        which = prompts.c.is_default if version is None else prompts.c.version == version
        found = connection.execute(_of(prompt_id).where(which)).all()
    if not found:
        raise NotFound("prompt" if version is None else f"version {version} of prompt", prompt_id)
    return _prompts(found)[0]


def _add(
    connection: Connection, prompt_id: str, text: PromptText, *, version: int, is_default: bool
) -> Prompt:
    kept = {"prompt": text.prompt, "variables": text.variables}
    found = Prompt(prompt_id=prompt_id, version=version, is_default=is_default, **kept)
    row = {"id": prompt_id, "version": version, "created_at": time.time(), "is_default": is_default}
    connection.execute(insert(prompts), row | {"prompt": json.dumps(kept)})
    return found


def _prompts(rows: Sequence[Row[Any]]) -> list[Prompt]:
    return [
        Prompt(prompt_id=row.id, version=row.version, is_default=row.is_default, **json.loads(row.prompt))
        for row in rows
    ]

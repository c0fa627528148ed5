"""Ids: what they are of, and 24 random bytes; who knows one may read what it names."""

import re
import secrets

WELL_FORMED = re.compile(r"[\w.:-]{1,64}", re.ASCII)


def new_id(kind: str) -> str:
    """An id such as `resp_...`, which nobody can guess."""
    return f"{kind}_{secrets.token_hex(24)}"


def well_formed(name: str) -> bool:
    """Whether it can be an id at all; other texts, a database may not even take."""
    return WELL_FORMED.fullmatch(name) is not None


def token(id: str) -> str:
    """An id as one word of an index of words."""
    return "".join(filter(str.isalnum, id)).lower()

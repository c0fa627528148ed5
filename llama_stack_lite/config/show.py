"""A configuration to be looked at: what is set, without its secrets."""

import re
from typing import Any

from pydantic import SecretBytes, SecretStr

from .fields import below
from .sections import StackConfig, config_of

MASK = "***"
_PASSWORD = re.compile(r"(://[^/\s:@]*:)[^/\s]*@")


def shown(config: StackConfig) -> dict[str, Any]:
    """What the configuration sets, as plain data; `***` for each value of a field that pydantic calls secret.

    A password in a URL is a secret wherever it stands.
    """
    data: dict[str, Any] = masked(config.model_dump(exclude_unset=True), {StackConfig})
    for api, entries in config.providers().items():
        for name, entry in entries.items():
            own = masked(entry.settings, {type(config_of(api, entry))})
            data[api][name] = {"provider": entry.provider, **own}
    return data


def masked(value: Any, kinds: set[Any]) -> Any:
    """A copy of a value whose field has those types, its secrets masked."""
    if isinstance(value, dict):
        return {key: masked(item, below(kinds, key)) for key, item in value.items()}
    if isinstance(value, list):
        return [masked(item, kinds) for item in value]
    if value is not None and kinds & {SecretStr, SecretBytes}:
        return MASK
    return _PASSWORD.sub(rf"\1{MASK}@", value) if isinstance(value, str) else value

"""Pydantic's messages in the words of somebody who writes YAML."""

import re

from pydantic_core import ErrorDetails

WORDS = {
    "missing": "is missing",
    "string_type": "must be text",
    "list_type": "must be a list",
    "dict_type": "must be a mapping of keys to values",
    "model_type": "must be a mapping of keys to values",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
}


def words(error: ErrorDetails) -> str:
    """What is wrong with a value, without the value: it may be a secret."""
    if error["loc"] and error["loc"][-1] == "[key]":
        return "a name is made of letters, digits, _ and -"
    message = error["msg"].removeprefix("Value error, ").replace(" after validation", "")
    return WORDS.get(error["type"]) or re.sub(r"^[A-Z]\w+ should ", "must ", message)

"""Images in a conversation: where they stand, and their bytes out of the data URLs that carry them."""

import base64
import binascii
import re
from collections.abc import Iterator, Sequence

from llama_stack_lite.api.inference import ImagePart, Message
from llama_stack_lite.errors import InvalidRequest

LARGEST = 20 * 1024 * 1024  # bytes of one image file
_DATA_URL = re.compile(r"data:(?P<type>[^,;]*)(?:;[^,;]*)*?;base64,", re.IGNORECASE)


def has_images(messages: Sequence[Message]) -> bool:
    """Whether a conversation shows anything."""
    return any(isinstance(p, ImagePart) for m in messages if isinstance(m.content, list) for p in m.content)


def images_of(messages: Sequence[Message]) -> Iterator[tuple[bytes, str]]:
    """Each image of a conversation, in order: the bytes of its file, and its place as errors name it."""
    for number, message in enumerate(messages):
        for place, part in enumerate(message.content if isinstance(message.content, list) else []):
            if isinstance(part, ImagePart):
                param = f"messages[{number}].content[{place}]"
                yield image_bytes(part, param=param), param


def image_bytes(part: ImagePart, *, param: str) -> bytes:
    """The image file that a part carries; `detail` changes nothing, since models here see one size.

    Raises `InvalidRequest` where it is no base64 data URL of an image, or larger than `LARGEST`. Nothing
    is fetched here: what the door has not brought in, nobody has checked.
    """
    param += ".image_url.url"
    url = part.image_url.url.strip()
    if url[:5].lower() != "data:":
        raise InvalidRequest(
            "images are not fetched from the network: send the image itself as a data URL, "
            "data:image/png;base64,...",
            param=param,
        )
    head = _DATA_URL.match(url[:256])
    if head is None or not head["type"].lower().startswith("image/"):
        raise InvalidRequest("the data URL must begin with data:image/...;base64,", param=param)
    if len(url) - head.end() > 4 * -(-LARGEST // 3):
        raise InvalidRequest(f"the image is larger than {LARGEST >> 20} MiB", param=param)
    try:
        return base64.b64decode("".join(url[head.end() :].split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidRequest(f"the image is no valid base64: {error}", param=param) from error

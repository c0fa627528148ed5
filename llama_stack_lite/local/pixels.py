"""Image files to pixels, as a model should see them; what is broken or a bomb is refused."""

import io
import logging

from PIL import Image, ImageOps

from llama_stack_lite.errors import InvalidRequest

log = logging.getLogger(__name__)

FORMATS = ("JPEG", "PNG", "WEBP", "GIF")
MOST_PIXELS = 50_000_000  # 150 MB once decoded; the size is known, and checked, before that
LONGEST = 200  # times the shorter side: beyond it a resized image is a line


def rgb(data: bytes, *, param: str) -> Image.Image:
    """Decode the first frame of an image file: upright by its EXIF data, on white where transparent.

    Raises `InvalidRequest` for another kind of file, a broken one, and too many pixels.
    """
    try:
        return _rgb(data)
    except InvalidRequest as error:
        raise InvalidRequest(str(error), param=param) from error
    except Exception as error:  # decoders of hostile bytes raise what they like
        log.info("an image of %d bytes cannot be decoded", len(data), exc_info=True)
        kinds = ", ".join(FORMATS[:-1])
        raise InvalidRequest(
            f"the image cannot be decoded: it must be an intact {kinds} or {FORMATS[-1]} file", param=param
        ) from error


def _rgb(data: bytes) -> Image.Image:
    image = _opened(data)
    width, height = image.size
    if width * height > MOST_PIXELS:
        raise _too_large(f"{width} x {height}")
    if max(width, height) > LONGEST * min(width, height):
        raise InvalidRequest(
            f"an image of {width} x {height} is too narrow: one side is more than {LONGEST} times the other"
        )
    upright = ImageOps.exif_transpose(image)
    if not upright.has_transparency_data:
        return upright.convert("RGB")
    colours = upright.convert("RGBA")
    paper = Image.new("RGBA", colours.size, "white")
    return Image.alpha_composite(paper, colours).convert("RGB")


def _opened(data: bytes) -> Image.Image:
    """Read an image's header. Pillow has a limit of its own, and warnings may be errors."""
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large("more than that") from error


def _too_large(size: str) -> InvalidRequest:
    return InvalidRequest(f"the image has too many pixels ({size}): {MOST_PIXELS:,} are the limit")

"""Pictures of text, read by the extra `ocr`."""

from collections.abc import Iterator
from statistics import median
from typing import Any

import numpy
from PIL import Image, ImageSequence
from rapidocr_onnxruntime import RapidOCR

from .document import Block, Document, Refused

PIXELS = 50_000_000  # of one picture: an A3 page at 600 dots per inch has more, and takes minutes
ICON = 16  # pixels of a side: smaller pictures have no room for words
Image.MAX_IMAGE_PIXELS = None  # judged here, before anything is unpacked

# lines are found in a picture made this small, and read as they are; by default small pictures are made large
engine = RapidOCR(
    intra_op_num_threads=1, inter_op_num_threads=1, det_limit_type="max", det_limit_side_len=1280
)


def read(document: Document) -> Iterator[Block]:
    """The lines of a picture; each picture of a TIFF is a page."""
    document.file.seek(0)
    with Image.open(document.file) as image:
        many = getattr(image, "n_frames", 1) > 1 and image.format == "TIFF"
        for number, frame in enumerate(ImageSequence.Iterator(image) if many else [image], start=1):
            yield Block("text", seen(frame), page=number if many else None)


def seen(image: Image.Image) -> str:
    """The text in a picture, line by line."""
    if image.width * image.height > PIXELS:
        raise Refused(f"its picture has more than {PIXELS // 1_000_000} million pixels")
    if min(image.width, image.height) < ICON:
        return ""
    found, _ = engine(numpy.asarray(image.convert("RGB")), use_cls=False)
    return "\n".join(" ".join(line) for line in _lines(found or []))


def _lines(found: list[Any]) -> Iterator[list[str]]:
    """Words whose middles are at one height, from left to right."""
    boxes = [
        (min(y for _, y in box), max(y for _, y in box), min(x for x, _ in box), text)
        for box, text, _ in found
    ]
    if not boxes:
        return
    height = median(low - high for high, low, _, _ in boxes)
    boxes.sort(key=lambda box: box[0] + box[1])
    line = [boxes[0]]
    for box in boxes[1:]:
        if (box[0] + box[1]) / 2 - (line[-1][0] + line[-1][1]) / 2 > height / 2:
            yield [text for *_, text in sorted(line, key=lambda each: each[2])]
            line = []
        line.append(box)
    yield [text for *_, text in sorted(line, key=lambda each: each[2])]

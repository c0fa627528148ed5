"""Images for a model that has an mmproj file: encoded beside the engine, then read by its thread."""

import ctypes
import hashlib
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llama_cpp.llama_cpp as lib
import numpy as np
from llama_cpp import mtmd_cpp as mtmd
from numpy.typing import NDArray

from llama_stack_lite.api.inference import Message, Tool
from llama_stack_lite.api.models import ModelCard
from llama_stack_lite.errors import ConfigError, ContextOverflow, InvalidRequest, Unavailable
from llama_stack_lite.local.pixels import rgb
from llama_stack_lite.local.served import Prompt
from llama_stack_lite.prompting.images import images_of
from llama_stack_lite.prompting.template import ChatTemplate, ImagePiece

from .log import CALLBACK, last_words
from .threads import rest
from .vocab import Vocab

VISION_BATCH = 1280  # rows that a model reads at once: some take a whole image, and no less
KEPT = 128 * 1024 * 1024  # bytes of encoded images that wait for their next request
_STRING = 8  # GGUF_TYPE_STRING
ABSOLUTE = {"hunyuanvl", "deepseek4v"}  # projectors whose embeddings depend on the place in the prompt

mtmd.mtmd_helper_log_set(CALLBACK, ctypes.c_void_p(0))


@dataclass(frozen=True, slots=True, eq=False)
class Tile:
    """A piece of a picture that is read at once: most models see one, some an overview and slices.

    `embeddings` are [rows, width]; `offsets` [dimensions, rows], the rows' positions counted from the
    tile's own; `span` how many positions it takes, which for M-RoPE is less than its rows. A tile that is
    not `causal` must be read in one batch.
    """

    embeddings: NDArray[np.float32]
    offsets: NDArray[np.int32]
    span: int
    causal: bool

    @property
    def rows(self) -> int:
        return len(self.embeddings)

    def rows_from(self, start: int, budget: int) -> int:
        """How many rows to read next, with room for `budget`."""
        return min(self.rows - start, budget) if self.causal else self.rows - start


Tiles = Mapping[int, Tile]  # by the index of its first placeholder in a prompt


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """An image as a prompt holds it: the model's own tokens around it, and placeholders for its tiles.

    Placeholders are negative, one for each position, and made of the file's hash: prompts with the same
    image share a prefix, and prompts with other images never do.
    """

    tokens: list[int]
    tiles: dict[int, Tile]

    @property
    def size(self) -> int:
        """Bytes in memory."""
        return sum(tile.embeddings.nbytes for tile in self.tiles.values())


class Vision:
    """The encoder of an mmproj file, for one loaded model. Any thread but the engine's may use it.

    `batch` is how many rows the model's context takes at once (`n_ubatch`), `context` how many tokens a
    sequence may hold, `most_tokens` how many an image may take, where the model lets that be chosen.
    It must be closed before the model, whose vocabulary it reads. Raises `ConfigError` with llama.cpp's
    last words where the file is broken or another model's.
    """

    def __init__(
        self,
        path: Path,
        model: Any,
        *,
        vocab: Vocab,
        threads: int,
        batch: int,
        context: int,
        most_tokens: int | None = None,
    ) -> None:
        self.vocab = vocab
        self.batch = batch
        self.context = context
        self.width: int = lib.llama_model_n_embd_inp(model)
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="mtmd")
        self._lock = threading.Lock()
        self._kept: OrderedDict[bytes, Picture] = OrderedDict()
        self._handle = _loaded(path, model, threads=threads, most_tokens=most_tokens)
        if not self._speaks():
            self.close()
            raise ConfigError(f"{path} puts tokens around images that this model does not have")
        self._mrope: bool = mtmd.mtmd_decode_use_mrope(self._handle)

    def prompt(
        self, template: ChatTemplate, messages: Sequence[Message], tools: Sequence[Tool] | None
    ) -> Prompt:
        """A conversation's tokens, with its `Tiles` as media; encodes what is not kept, which takes time.

        Raises `InvalidRequest` for an image that cannot be read, `ContextOverflow` where they do not fit.
        """
        pictures = [self.prepare(data, param=param) for data, param in images_of(messages)]
        tokens: list[int] = []
        tiles: dict[int, Tile] = {}
        for piece in template.render_images(messages, tools):
            if isinstance(piece, ImagePiece):
                picture = pictures[piece.number]
                tiles |= {len(tokens) + at: tile for at, tile in picture.tiles.items()}
                tokens += picture.tokens
            else:
                tokens += self.vocab.tokens_of(piece.text, special=piece.special)
        if self.vocab.adds_bos and tokens[:1] != [self.vocab.bos]:
            tokens.insert(0, self.vocab.bos)
            tiles = {at + 1: tile for at, tile in tiles.items()}
        needed = len(tokens) + surplus(tiles)
        if needed >= self.context:
            raise ContextOverflow(limit=self.context, prompt=needed)
        if tokens and tokens[-1] < 0:
            raise InvalidRequest(
                "this model's chat template ends with an image: say something after it", param="messages"
            )
        return Prompt(tokens, tiles, surplus=surplus(tiles))

    def prepare(self, data: bytes, *, param: str = "image_url") -> Picture:
        """Decode and encode an image file, one at a time; images that were seen lately are kept.

        Raises `InvalidRequest` where it cannot be decoded, `ContextOverflow` where it alone is too long.
        """
        key = hashlib.sha256(data).digest()
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
            if self._handle is None:
                raise Unavailable("the model is being closed")
            image = rgb(data, param=param)
            with _chunks(self._handle, image.size, image.tobytes()) as chunks:
                if not chunks:
                    width, height = image.size
                    raise InvalidRequest(
                        f"the model cannot take an image of {width} x {height} pixels: {last_words()}",
                        param=param,
                    )
                self._check(chunks, param)
                picture = self._picture(chunks, key)
            self._keep(key, picture)
            return picture

    def close(self) -> None:
        """Free the encoder; waits for the image that is being encoded."""
        self.thread.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            self._kept.clear()
            if self._handle is not None:
                mtmd.mtmd_free(self._handle)
            self._handle = None

    def _speaks(self) -> bool:
        """Whether the model has the tokens that mtmd puts around an image, tried on one without pixels."""
        with _chunks(self._handle, (1024, 768), None) as chunks:
            return all(_is_image(chunk) or min(_text_tokens(chunk)) >= 0 for chunk in chunks)

    def _check(self, chunks: list[Any], param: str) -> None:
        """Refuse before the encoding, which takes seconds, what the model's context cannot take."""
        rows = [mtmd.mtmd_input_chunk_get_n_tokens(chunk) for chunk in chunks]
        if sum(rows) >= self.context:
            raise ContextOverflow(limit=self.context, prompt=sum(rows), param=param)
        whole = [n for n, chunk in zip(rows, chunks, strict=True) if not self._causal(chunk)]
        if max(whole, default=0) > self.batch:
            raise InvalidRequest(
                f"the image takes {max(whole)} tokens that must be read at once, and this model is loaded to "
                f"read {self.batch}: send a smaller image",
                param=param,
            )

    def _causal(self, chunk: Any) -> bool:
        return not (_is_image(chunk) and mtmd.mtmd_decode_use_non_causal(self._handle, chunk))

    def _picture(self, chunks: list[Any], key: bytes) -> Picture:
        tokens: list[int] = []
        tiles: dict[int, Tile] = {}
        for number, chunk in enumerate(chunks):
            if _is_image(chunk):
                tile = self._tile(chunk)
                tiles[len(tokens)] = tile
                tokens += placeholders(key, number, tile.span)
            else:
                tokens += _text_tokens(chunk)
        return Picture(tokens, tiles)

    def _tile(self, chunk: Any) -> Tile:
        failed = mtmd.mtmd_encode_chunk(self._handle, chunk)
        rest()
        if failed:
            raise Unavailable(f"the image could not be encoded: {last_words()}")
        rows = mtmd.mtmd_input_chunk_get_n_tokens(chunk)
        found = np.ctypeslib.as_array(mtmd.mtmd_get_output_embd(self._handle), (rows, self.width))
        return Tile(
            embeddings=found.copy(),
            offsets=_offsets(chunk, rows) if self._mrope else np.arange(rows, dtype=np.int32)[None],
            span=mtmd.mtmd_input_chunk_get_n_pos(chunk),
            causal=self._causal(chunk),
        )

    def _keep(self, key: bytes, picture: Picture) -> None:
        self._kept[key] = picture
        size = sum(each.size for each in self._kept.values())
        while size > KEPT and len(self._kept) > 1:
            size -= self._kept.popitem(last=False)[1].size


def decode(context: Any, tile: Tile, *, position: int, sequence: int, start: int, count: int) -> int:
    """Read `count` rows of a tile, from row `start` on, into a sequence's cache; only the engine's thread.

    `position` is the tile's first. After its last row the sequence goes on at `position + tile.span`.
    Returns what `llama_decode` does: 0, or 1 where there is no room, and below 0 it failed.
    """
    positions = np.zeros((4 if len(tile.offsets) > 1 else 1, count), dtype=np.int32)
    positions[: len(tile.offsets)] = tile.offsets[:, start : start + count] + position
    embeddings = np.ascontiguousarray(tile.embeddings[start : start + count])
    ones, outputs = np.ones(count, dtype=np.int32), np.zeros(count, dtype=np.int8)
    number = lib.llama_seq_id(sequence)
    batch = lib.llama_batch(
        n_tokens=count,
        embd=embeddings.ctypes.data_as(ctypes.POINTER(ctypes.c_float)),
        pos=positions.ctypes.data_as(ctypes.POINTER(lib.llama_pos)),
        n_seq_id=ones.ctypes.data_as(ctypes.POINTER(ctypes.c_int32)),
        seq_id=(ctypes.POINTER(lib.llama_seq_id) * count)(*[ctypes.pointer(number)] * count),
        logits=outputs.ctypes.data_as(ctypes.POINTER(ctypes.c_int8)),
    )
    if tile.causal:
        return int(lib.llama_decode(context, batch))
    lib.llama_set_causal_attn(context, False)
    try:
        return int(lib.llama_decode(context, batch))
    finally:
        lib.llama_set_causal_attn(context, True)


def boundary(tiles: Tiles, length: int) -> int:
    """How much of a prompt's first `length` tokens can be kept: a tile is kept whole or read again."""
    inside = [at for at, tile in tiles.items() if at < length < at + tile.span]
    return inside[0] if inside else length


def surplus(tiles: Tiles) -> int:
    """How many cells of the cache a prompt's tiles take beyond their positions: M-RoPE shares these."""
    return sum(tile.rows - tile.span for tile in tiles.values())


def placeholders(key: bytes, number: int, span: int) -> list[int]:
    """Negative 32-bit ids for the positions of a tile, as good as unique to its file and its number."""
    digest = hashlib.shake_256(key + number.to_bytes(4, "little")).digest(4 * span)
    ids = np.frombuffer(digest, dtype="<u4") | np.uint32(1 << 31)
    return [int(each) for each in ids.view(np.int32)]


def mmproj_of(paths: Sequence[Path], *, card: ModelCard) -> Path | None:
    """Which of a card's GGUF files is the mmproj; none for a model that reads text only.

    It goes by what the files say of themselves, not by their names. Raises `ConfigError` where there are
    two, or where the card says `vision: true` and there is none.
    """
    found = [path for path in paths if is_mmproj(path)]
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise ConfigError(f"`{card.id}` has more than one mmproj file ({names}): keep one in `files`")
    if card.vision and not found:
        raise ConfigError(
            f"`{card.id}` has `vision: true` and no mmproj file: add the model's mmproj-*.gguf to `files`, "
            "or take `vision: true` away and it reads text only"
        )
    return found[0] if found else None


def is_mmproj(path: Path) -> bool:
    """Whether a file is a GGUF that holds an encoder of images or sounds, by its metadata."""
    return _metadata(path, "general.architecture") == "clip"


def _loaded(path: Path, model: Any, *, threads: int, most_tokens: int | None) -> Any:
    if not is_mmproj(path):
        raise ConfigError(f"{path} is no mmproj file: it is missing, broken, or a model of another kind")
    projectors = {_metadata(path, key) for key in ("clip.projector_type", "clip.vision.projector_type")}
    if unknown := projectors & ABSOLUTE:
        raise ConfigError(f"{path} is an mmproj of a kind ({unknown.pop()}) that this provider cannot use")
    params = mtmd.mtmd_context_params_default()
    params.n_threads = threads
    params.print_timings = False
    if most_tokens is not None:
        params.image_max_tokens = most_tokens
    handle = mtmd.mtmd_init_from_file(str(path).encode(), model, params)
    if not handle:
        raise ConfigError(f"llama.cpp cannot use {path} with this model: {last_words()}")
    if not mtmd.mtmd_support_vision(handle):
        mtmd.mtmd_free(handle)
        raise ConfigError(f"{path} is an mmproj without an encoder of images")
    return handle


@contextmanager
def _chunks(handle: Any, size: tuple[int, int], pixels: bytes | None) -> Iterator[list[Any]]:
    """What mtmd makes of an image alone, text and image chunks, while the block lasts; none if it fails."""
    data = ctypes.cast(ctypes.c_char_p(pixels), ctypes.POINTER(ctypes.c_uint8))
    bitmap = mtmd.mtmd_bitmap_init(*size, data)
    chunks = mtmd.mtmd_input_chunks_init()
    marker = mtmd.mtmd_get_marker(handle)
    text = mtmd.mtmd_input_text(marker, len(marker), False, True)
    try:
        mtmd.mtmd_tokenize(handle, chunks, ctypes.byref(text), (ctypes.c_void_p * 1)(bitmap), 1)
        yield [mtmd.mtmd_input_chunks_get(chunks, n) for n in range(mtmd.mtmd_input_chunks_size(chunks))]
    finally:
        mtmd.mtmd_input_chunks_free(chunks)
        mtmd.mtmd_bitmap_free(bitmap)


def _is_image(chunk: Any) -> bool:
    return bool(mtmd.mtmd_input_chunk_get_type(chunk) == mtmd.MTMD_INPUT_CHUNK_TYPE_IMAGE)


def _text_tokens(chunk: Any) -> list[int]:
    count = ctypes.c_size_t()
    tokens = mtmd.mtmd_input_chunk_get_tokens_text(chunk, ctypes.byref(count))
    return list(tokens[: count.value])


def _offsets(chunk: Any, rows: int) -> NDArray[np.int32]:
    """M-RoPE's time, height and width of each row; the fourth dimension stays 0."""
    tokens = mtmd.mtmd_input_chunk_get_tokens_image(chunk)
    found = (mtmd.mtmd_decoder_pos * rows)()
    mtmd.mtmd_helper_image_get_decoder_pos(tokens, 0, found)
    return np.array([[each.t, each.y, each.x] for each in found], dtype=np.int32).T


class _Params(ctypes.Structure):
    _fields_ = (("no_alloc", ctypes.c_bool), ("ctx", ctypes.c_void_p))


def _metadata(path: Path, key: str) -> str | None:
    """A string of a GGUF file's metadata; none where it has none, or is no GGUF."""
    gguf = lib._lib  # the binding names none of these functions
    gguf.gguf_init_from_file.restype = ctypes.c_void_p
    gguf.gguf_find_key.restype = ctypes.c_int64
    gguf.gguf_get_val_str.restype = ctypes.c_char_p
    handle = ctypes.c_void_p(gguf.gguf_init_from_file(str(path).encode(), _Params(True, None)))
    if not handle:
        return None
    try:
        number = ctypes.c_int64(gguf.gguf_find_key(handle, key.encode()))
        if number.value < 0 or gguf.gguf_get_kv_type(handle, number) != _STRING:
            return None
        found: bytes = gguf.gguf_get_val_str(handle, number)
        return found.decode("utf-8", "replace")
    finally:
        gguf.gguf_free(handle)

"""Images through mtmd: tiny random encoders of every kind, read by a real llama.cpp context."""

import ctypes
import gc
import io
import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import llama_cpp.llama_cpp as lib
import numpy as np
import pytest
from llama_cpp import mtmd_cpp as mtmd
from PIL import Image

from llama_stack_lite.api.inference import Message
from llama_stack_lite.api.models import ModelCard
from llama_stack_lite.errors import ConfigError, ContextOverflow, InvalidRequest, Unavailable
from llama_stack_lite.local.served import Prompt
from llama_stack_lite.prompting.template import ChatTemplate
from llama_stack_lite.providers.inference.llama_cpp import vision
from llama_stack_lite.providers.inference.llama_cpp.loading import Loaded
from llama_stack_lite.providers.inference.llama_cpp.vision import (
    Vision,
    boundary,
    decode,
    mmproj_of,
    placeholders,
    surplus,
)

from .support.tiny import LLAMA3_TEMPLATE, write_llama
from .support.tiny_vision import SIDES, image_file, image_part, write_mmproj

ROWS = [f"<row_{row}_col_{column}>" for row in (1, 2) for column in (1, 2)]
SPECIALS = ["<fake_token_around_image>", "<global-img>", "<|vision_start|>", "<|vision_end|>", "\n\n", *ROWS]
LLAMA3_TURN = "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|>"
LLAMA3_TURN += "<|start_header_id|>assistant<|end_header_id|>\n\n"
RED, BLUE = image_file("red"), image_file("blue")
BATCH, CONTEXT = 256, 1024


@dataclass
class Seer:
    """A loaded model that sees, and as much of an engine as the tests need."""

    loaded: Loaded
    vision: Vision
    batch: int

    def prompt(self, *parts: str | bytes, before: list[Message] | None = None) -> Prompt:
        template = ChatTemplate(
            LLAMA3_TEMPLATE,
            bos=self.loaded.vocab.bos_text,
            eos=self.loaded.vocab.eos_text,
            specials=self.loaded.vocab.specials,
        )
        found: Prompt = self.vision.prompt(template, [*(before or []), user(*parts)], None)
        return found

    def logits(self, prompt: Prompt, *, sequence: int = 0, kept: int = 0) -> Any:
        """Read a prompt of which the cache holds the first `kept` tokens, and give the last row's logits."""
        assert lib.llama_memory_seq_rm(self.loaded.memory, sequence, kept, -1)
        at = kept
        while at < len(prompt.tokens):
            if tile := prompt.media.get(at):
                start = 0
                while start < tile.rows:
                    count = tile.rows_from(start, self.batch)
                    place = {"position": at, "sequence": sequence, "start": start, "count": count}
                    assert decode(self.loaded.context, tile, **place) == 0
                    start += count
                at += tile.span
            else:
                end = min([each for each in prompt.media if each > at] + [len(prompt.tokens)])
                self._text(prompt.tokens[at:end], at, sequence)
                at = end
        return self.last_logits()

    def last_logits(self) -> Any:
        pointer = lib.llama_get_logits_ith(self.loaded.context, -1)
        return np.ctypeslib.as_array(pointer, (self.loaded.vocab.size,)).copy()

    def _text(self, tokens: list[int], at: int, sequence: int) -> None:
        for first in range(0, len(tokens), self.batch):
            piece = tokens[first : first + self.batch]
            batch = lib.llama_batch_init(len(piece), 0, 1)
            for row, token in enumerate(piece):
                batch.token[row], batch.pos[row] = token, at + first + row
                batch.n_seq_id[row], batch.seq_id[row][0] = 1, sequence
                batch.logits[row] = row == len(piece) - 1
            batch.n_tokens = len(piece)
            assert lib.llama_decode(self.loaded.context, batch) == 0
            lib.llama_batch_free(batch)


def user(*parts: str | bytes, role: str = "user") -> Message:
    content = [{"type": "text", "text": p} if isinstance(p, str) else image_part(p) for p in parts]
    return Message.model_validate({"role": role, "content": content})


def halves(left: str, right: str, *, size: tuple[int, int] = (64, 32)) -> bytes:
    image = Image.new("RGB", size, left)
    image.paste(right, (size[0] // 2, 0, *size))
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


@contextmanager
def seeing(folder: Path, projector: str, *, batch: int = BATCH, context: int = CONTEXT) -> Iterator[Seer]:
    architecture = "qwen2vl" if projector == "qwen2vl_merger" else "llama"
    model = write_llama(folder / "model.gguf", architecture=architecture, specials=SPECIALS)
    mmproj = write_mmproj(folder / "mmproj.gguf", projector=projector)
    loaded = Loaded(model, context=context, slots=2, threads=1, batch=batch)
    try:
        seen = Vision(
            mmproj, loaded.model, vocab=loaded.vocab, threads=1, batch=batch, context=loaded.context_length
        )
        try:
            yield Seer(loaded, seen, batch)
        finally:
            seen.close()
    finally:
        loaded.close()


@pytest.fixture(scope="module", params=list(SIDES))
def seer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seer]:
    with seeing(tmp_path_factory.mktemp("vision"), request.param) as found:
        yield found


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seer]:
    with seeing(tmp_path_factory.mktemp("llava"), "mlp") as found:
        yield found


def far(one: Any, other: Any) -> bool:
    return bool(np.abs(one - other).max() > 0.05)


def same(one: Any, other: Any) -> bool:
    """Equal but for the order of sums, which goes with how a prompt is cut into batches."""
    return bool(np.abs(one - other).max() < 5e-3)


# ------------------------------------------------------------------ what the model sees


def test_the_model_sees_colours_and_sees_them_again(seer: Seer) -> None:
    red, blue = seer.prompt("this is ", RED, "what?"), seer.prompt("this is ", BLUE, "what?")
    seen = [seer.logits(prompt) for prompt in (red, blue, red)]
    assert np.isfinite(seen[0]).all()
    assert far(seen[0], seen[1]) and np.array_equal(seen[0], seen[2])
    assert np.array_equal(seer.logits(red, sequence=1), seen[0])


def test_it_is_what_llama_cpp_itself_would_read(seer: Seer) -> None:
    ours = seer.logits(seer.prompt("this is ", BLUE, "what?"))
    assert lib.llama_memory_seq_rm(seer.loaded.memory, 1, -1, -1)
    said = LLAMA3_TURN.format("this is <__media__>what?").encode()
    text = mtmd.mtmd_input_text(said, len(said), False, True)
    pixels = Image.open(io.BytesIO(BLUE)).tobytes()
    bitmap = mtmd.mtmd_bitmap_init(40, 30, (ctypes.c_uint8 * len(pixels)).from_buffer_copy(pixels))
    chunks, end = mtmd.mtmd_input_chunks_init(), lib.llama_pos()
    handle, context = seer.vision._handle, seer.loaded.context
    bitmaps = (ctypes.c_void_p * 1)(bitmap)
    assert mtmd.mtmd_tokenize(handle, chunks, ctypes.byref(text), bitmaps, 1) == 0
    assert mtmd.mtmd_helper_eval_chunks(handle, context, chunks, 0, 1, BATCH, True, ctypes.byref(end)) == 0
    mtmd.mtmd_input_chunks_free(chunks)
    mtmd.mtmd_bitmap_free(bitmap)
    assert end.value == len(seer.prompt("this is ", BLUE, "what?").tokens)
    assert same(seer.last_logits(), ours)


def test_where_a_colour_is_can_be_seen(seer: Seer) -> None:
    one, other = (seer.prompt(halves(*pair), "?") for pair in (("red", "blue"), ("blue", "red")))
    assert far(seer.logits(one), seer.logits(other))


def test_two_images_and_their_order(seer: Seer) -> None:
    one, other = seer.prompt(RED, "and", BLUE, "?"), seer.prompt(BLUE, "and", RED, "?")
    assert len(one.media) == len(other.media) == 2 * len(seer.vision.prepare(RED).tiles)
    assert sorted(one.tokens) == sorted(other.tokens) != one.tokens
    assert far(seer.logits(one), seer.logits(other))


def test_text_after_an_image_matters(seer: Seer) -> None:
    assert far(seer.logits(seer.prompt(RED, "what?")), seer.logits(seer.prompt(RED, "the fox")))


def test_a_second_turn_goes_on_from_the_first(seer: Seer) -> None:
    first = seer.prompt("see ", RED, "?")
    before = [user("see ", RED, "?"), Message(role="assistant", content="the fox")]
    second = seer.prompt("and ", BLUE, "?", before=before)
    whole = seer.logits(second, sequence=1)
    seer.logits(first)
    kept = boundary(second.media, len(first.tokens))
    assert kept == len(first.tokens) and second.tokens[:kept] == first.tokens
    assert same(seer.logits(second, kept=kept), whole)


def test_a_prompt_that_was_cut_inside_an_image_reads_it_again(seer: Seer) -> None:
    one = seer.prompt("see ", RED, "?")
    whole = seer.logits(one)
    at, tile = next(iter(one.media.items()))
    kept = boundary(one.media, at + 1)
    assert kept == at and boundary(one.media, at + tile.span) == at + tile.span
    assert same(seer.logits(one, kept=kept), whole)


# ------------------------------------------------------------------ prompts


def test_placeholders_are_one_a_position_and_the_files_own(seer: Seer) -> None:
    red, again, blue = seer.prompt(RED, "a"), seer.prompt(RED, "b"), seer.prompt(BLUE, "a")
    at = min(red.media)
    taken = {n for first, tile in red.media.items() for n in range(first, first + tile.span)}
    assert {n for n, token in enumerate(red.tokens) if token < 0} == taken
    assert min(red.tokens) >= -(2**31)
    assert red.tokens[: max(taken)] == again.tokens[: max(taken)]
    assert red.tokens[at] != blue.tokens[at] and red.tokens[:at] == blue.tokens[:at]
    assert red.tokens.count(seer.loaded.vocab.bos) == 1 == red.tokens.index(seer.loaded.vocab.bos) + 1


def test_a_bos_that_the_template_leaves_out_moves_the_images(llava: Seer) -> None:
    found = llava.vision.prompt(ChatTemplate(None, bos="", eos="", specials=()), [user("x", RED, "y")], None)
    (at,) = found.media
    assert found.tokens[0] == llava.loaded.vocab.bos and found.tokens[at] < 0 <= found.tokens[at - 1]


def test_a_conversation_without_images_is_text(llava: Seer) -> None:
    found = llava.prompt("hello")
    assert found.media == {} and min(found.tokens) >= 0
    assert np.isfinite(llava.logits(found)).all()


def test_a_template_that_ends_with_an_image_is_refused(llava: Seer) -> None:
    template = ChatTemplate("{{ messages[-1].content }}", bos="", eos="", specials=())
    with pytest.raises(InvalidRequest, match="ends with an image"):
        llava.vision.prompt(template, [user("x", RED)], None)


def test_control_tokens_of_images_cannot_be_written_by_a_request(tmp_path: Path) -> None:
    with seeing(tmp_path, "qwen2vl_merger") as found:
        start = found.loaded.vocab.specials["<|vision_start|>"]
        assert found.prompt("<|vision_start|>", RED, "<|vision_start|>").tokens.count(start) == 1


def test_slices_have_their_tokens_between_them(tmp_path: Path) -> None:
    with seeing(tmp_path, "idefics3") as found:
        picture = found.vision.prepare(image_file("red", size=(60, 40)))
        names = {found.loaded.vocab.specials[name] for name in (*ROWS, "<global-img>")}
        assert len(picture.tiles) == 5 and names < set(picture.tokens)
        tiles = list(picture.tiles)
        first, second = (picture.tokens[at : at + picture.tiles[at].span] for at in tiles[:2])
        assert first != second  # a cut between two slices of one file is seen


def test_mrope_takes_fewer_positions_than_rows(tmp_path: Path) -> None:
    with seeing(tmp_path, "qwen2vl_merger") as found:
        prompt = found.prompt(image_file("red", size=(96, 64)), "?")
        (tile,) = prompt.media.values()
        height, width = tile.offsets[1].max() + 1, tile.offsets[2].max() + 1
        assert (tile.rows, tile.span) == (height * width, max(height, width))
        assert surplus(prompt.media) == tile.rows - tile.span > 0
        found.logits(prompt)
        last = lib.llama_memory_seq_pos_max(found.loaded.memory, 0)
        assert last == len(prompt.tokens) - 1


# ------------------------------------------------------------------ room


@pytest.mark.parametrize("projector", ["mlp", "idefics3", "qwen2vl_merger"])
def test_an_image_larger_than_the_batch_is_read_in_pieces(projector: str, tmp_path: Path) -> None:
    image = halves("red", "green", size=(96, 96))
    with seeing(tmp_path, projector) as found:
        whole = found.logits(found.prompt("see ", image, "what is the weather in Paris?"))
    with seeing(tmp_path, projector, batch=3) as found:
        pieces = found.logits(found.prompt("see ", image, "what is the weather in Paris?"))
    assert same(whole, pieces)


def test_an_image_that_must_be_read_at_once_is(tmp_path: Path) -> None:
    with seeing(tmp_path, "gemma3", batch=16) as found:
        (tile,) = found.vision.prepare(RED).tiles.values()
        assert not tile.causal and tile.rows_from(0, 3) == 16
    with (
        seeing(tmp_path, "gemma3", batch=15) as found,
        pytest.raises(InvalidRequest, match="16 tokens that must be read at once.* 15") as refused,
    ):
        found.prompt("see", RED)
    assert refused.value.param == "messages[0].content[1]"


def test_causal_attention_comes_back_after_an_image_without(tmp_path: Path) -> None:
    with seeing(tmp_path, "gemma3") as found:
        text = found.prompt("the quick brown fox")
        before = found.logits(text)
        found.logits(found.prompt(RED, "?"))
        assert np.array_equal(found.logits(text), before)


def test_images_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with seeing(tmp_path, "mlp", context=160) as found:
        limit = found.loaded.context_length
        assert len(found.prompt(RED, "?").tokens) < limit
        with pytest.raises(ContextOverflow, match=f"is {limit} tokens"):
            found.prompt(*[RED] * 5, "?")
    with seeing(tmp_path, "qwen2vl_merger", context=256) as found:
        large = image_file("red", size=(1000, 1000))
        with pytest.raises(ContextOverflow) as refused:
            found.prompt("what is", large)
        assert refused.value.param == "messages[0].content[1]"
        # few positions, many rows: counted by what they take in the cache
        some = [image_file(colour, size=(64, 64)) for colour in ("red", "blue", "green", "black")]
        with pytest.raises(ContextOverflow):
            found.prompt(*some, "?")


def test_an_image_can_be_told_to_take_fewer_tokens(tmp_path: Path) -> None:
    model = write_llama(tmp_path / "model.gguf", architecture="qwen2vl")
    mmproj = write_mmproj(tmp_path / "mmproj.gguf", projector="qwen2vl_merger")
    loaded = Loaded(model, context=256, slots=1, threads=1, batch=64)
    made = {"vocab": loaded.vocab, "threads": 1, "batch": 64, "context": 256}
    small = Vision(mmproj, loaded.model, most_tokens=50, **made)
    (tile,) = small.prepare(image_file("red", size=(1000, 1000))).tiles.values()
    assert 25 < tile.rows <= 50
    small.close()
    loaded.close()


# ------------------------------------------------------------------ beside the engine


def test_an_image_is_encoded_once_and_kept_for_a_while(llava: Seer, monkeypatch: pytest.MonkeyPatch) -> None:
    red = llava.vision.prepare(RED)
    assert llava.vision.prepare(RED) is red
    monkeypatch.setattr(vision, "KEPT", 2 * red.size)
    for colour in ("lime", "cyan"):
        llava.vision.prepare(image_file(colour))
    assert llava.vision.prepare(image_file("cyan")) and llava.vision.prepare(RED) is not red


def test_encoding_in_a_thread_changes_nothing_in_the_engines(llava: Seer) -> None:
    text, red = llava.prompt("the quick brown fox"), llava.prompt(RED, "?")
    alone = [llava.logits(text), llava.logits(red)]
    files = [halves("red", f"#{n:06x}") for n in range(60)]
    with ThreadPoolExecutor(4) as threads:
        encoded = [threads.submit(llava.vision.prepare, file) for file in files]
        beside = [[llava.logits(text), llava.logits(red)] for _ in range(20)]
        pictures = [each.result() for each in encoded]
    assert all(np.array_equal(one, other) for pair in beside for one, other in zip(pair, alone, strict=True))
    llava.vision._kept.clear()
    for file, picture in list(zip(files, pictures, strict=True))[::20]:
        (again,), (tile,) = llava.vision.prepare(file).tiles.values(), picture.tiles.values()
        assert np.array_equal(again.embeddings, tile.embeddings)


def test_a_closed_encoder_refuses_and_closing_twice_is_nothing(tmp_path: Path) -> None:
    with seeing(tmp_path, "mlp") as found:
        found.vision.close()
        with pytest.raises(Unavailable, match="being closed"):
            found.prompt(RED)


def test_nothing_is_left_behind(llava: Seer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vision, "KEPT", 0)

    def work(start: int) -> int:
        for number in range(start, start + 60):
            llava.vision.prepare(image_file(f"#{number:06x}", size=(400, 400)))  # 480 kB of pixels each
        gc.collect()
        pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    work(0)
    assert work(200) - work(100) < 10_000_000 and len(llava.vision._kept) == 1


@pytest.mark.parametrize("size", [(1, 1), (1, 200), (200, 1), (3, 599), (2000, 11), (1023, 1025)])
def test_no_size_of_image_breaks_the_process(seer: Seer, size: tuple[int, int]) -> None:
    try:
        prompt = seer.prompt(image_file("red", size=size), "?")
    except InvalidRequest as refused:
        assert refused.param == "messages[0].content[0]" and re.search(
            "take an image of|tokens", str(refused)
        )
    else:
        assert np.isfinite(seer.logits(prompt)).all()


def test_a_broken_image_is_refused_by_its_place(llava: Seer) -> None:
    with pytest.raises(InvalidRequest, match="cannot be decoded") as refused:
        llava.prompt("see", RED, RED[:50])
    assert refused.value.param == "messages[0].content[2]"


# ------------------------------------------------------------------ files


def empty(path: Path) -> None:
    writer = gguf.GGUFWriter(str(path), "clip")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


def cut(path: Path, size: int) -> None:
    path.write_bytes(write_mmproj(path).read_bytes()[:size])


def named(path: Path, projector: str) -> None:
    """An mmproj that calls its projector by another name."""
    old, new = (len(name).to_bytes(8, "little") + name.encode() for name in ("gemma3", projector))
    path.write_bytes(write_mmproj(path, projector="gemma3").read_bytes().replace(old, new))


BROKEN: dict[str, Callable[[Path], object]] = {
    "missing": lambda path: None,
    "garbage": lambda path: path.write_bytes(b"GGUF and nothing of the sort" * 100),
    "no header": lambda path: cut(path, 700),
    "a text model": write_llama,
    "empty": empty,
    "cut": lambda path: cut(path, -20_000),
    "another model's": lambda path: write_mmproj(path, width=96),
    "another model's tokens": lambda path: write_mmproj(path, projector="idefics3"),
    "unknown": lambda path: named(path, "unknown"),
    "hunyuanvl": lambda path: named(path, "hunyuanvl"),
}


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("missing", "no mmproj file: it is missing, broken"),
        ("garbage", "no mmproj file"),
        ("no header", "no mmproj file"),
        ("a text model", "no mmproj file"),
        ("empty", "cannot use .* with this model: .*Failed to load CLIP"),
        ("cut", "cannot use"),
        ("another model's", "cannot use .*mismatch between text model"),
        ("another model's tokens", "puts tokens around images that this model does not have"),
        ("unknown", "unknown projector type: unknown"),
        ("hunyuanvl", "of a kind .hunyuanvl. that this provider cannot use"),
    ],
)
def test_a_wrong_file_is_one_clear_message(kind: str, why: str, tmp_path: Path) -> None:
    loaded = Loaded(write_llama(tmp_path / "model.gguf"), context=256, slots=1, threads=1, batch=64)
    path = tmp_path / "mmproj-broken.gguf"
    BROKEN[kind](path)
    try:
        with pytest.raises(ConfigError) as refused:
            Vision(path, loaded.model, vocab=loaded.vocab, threads=1, batch=64, context=256)
    finally:
        loaded.close()
    message = str(refused.value)
    assert re.search(why, message) and str(path) in message and "\n" not in message


def test_the_files_of_a_card_are_told_apart_by_what_they_hold(tmp_path: Path) -> None:
    model = write_llama(tmp_path / "mmproj-in-name-only.gguf")
    mmproj = write_mmproj(tmp_path / "eyes.gguf")
    seeing_card, text_card = ModelCard(id="a", vision=True), ModelCard(id="b")
    assert mmproj_of([model, mmproj], card=seeing_card) == mmproj
    assert mmproj_of([model, mmproj], card=text_card) == mmproj
    assert mmproj_of([model], card=text_card) is None
    with pytest.raises(ConfigError, match="`a` has `vision: true` and no mmproj file: add"):
        mmproj_of([model], card=seeing_card)
    with pytest.raises(ConfigError, match=r"more than one mmproj file \(eyes.gguf, eyes.gguf\)"):
        mmproj_of([mmproj, mmproj], card=seeing_card)


def test_placeholders_are_the_same_in_every_process() -> None:
    assert placeholders(bytes(32), 0, 3) == [-104590180, -1497462675, -719835517]
    assert placeholders(bytes(32), 0, 3) != placeholders(bytes(32), 1, 3)

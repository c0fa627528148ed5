"""Images for a model that sees, by its own processor; pixels go with the prompt to the engine's thread."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from transformers import ProcessorMixin
from transformers.models.mllama.processing_mllama import (
    convert_sparse_cross_attention_mask_to_dense,
    get_cross_attention_token_mask,
)

from llama_stack_lite.api.inference import Message, Tool
from llama_stack_lite.errors import ConfigError, InvalidRequest
from llama_stack_lite.local.pixels import rgb
from llama_stack_lite.local.served import Prompt
from llama_stack_lite.prompting.images import images_of
from llama_stack_lite.prompting.template import ChatTemplate, ImagePiece, Piece

from .vocab import Vocab


class Vision:
    """Writes prompts with images, in which no text of a request can be taken for an image's place."""

    def __init__(self, processor: ProcessorMixin, vocab: Vocab) -> None:
        if getattr(processor, "image_token", None) is None or not hasattr(processor, "image_processor"):
            raise ConfigError(f"{type(processor).__name__} is of a kind that this provider cannot use")
        self.processor = processor
        self.vocab = vocab
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="vision")

    def close(self) -> None:
        self.thread.shutdown(wait=False, cancel_futures=True)

    def prompt(
        self, template: ChatTemplate, messages: Sequence[Message], tools: Sequence[Tool] | None
    ) -> Prompt:
        """A conversation's tokens, with the model's other inputs as media.

        Raises `InvalidRequest` for an image that cannot be read, or has no place in the model's template.
        """
        images = [rgb(data, param=param) for data, param in images_of(messages)]
        if not images:
            return Prompt(self.vocab.prompt(template.render(messages, tools)))
        pieces = list(self._split(template.render_images(messages, tools, parts=True)))
        if sum(isinstance(piece, ImagePiece) for piece in pieces) != len(images):
            raise InvalidRequest("the model's chat template leaves images out", param="messages")
        features, texts = self._look(images)
        tokens = self.vocab.prompt(
            (texts[piece.number], True) if isinstance(piece, ImagePiece) else piece for piece in pieces
        )
        return Prompt(tokens, self._media(features, tokens))

    def _split(self, pieces: list[Piece | ImagePiece]) -> Iterator[Piece | ImagePiece]:
        """Find the places that the template gave the images."""
        number = 0
        for piece in pieces:
            if isinstance(piece, ImagePiece) or not piece.special:
                yield piece
                continue
            before, *rest = piece.text.split(self.processor.image_token)
            yield Piece(before, True)
            for text in rest:
                yield ImagePiece(number)
                yield Piece(text, True)
                number += 1

    def _look(self, images: list[Any]) -> tuple[dict[str, Any], list[str]]:
        """The features of all images, and what stands for each of them in the prompt."""
        try:
            given, *_ = self.processor.prepare_inputs_layout(images=images)
            features = self.processor.image_processor(given, return_tensors="pt")
            texts = [self.processor.replace_image_token(features, at) for at in range(len(images))]
        except (TypeError, ValueError) as error:
            raise InvalidRequest(f"the model cannot take these images: {error}", param="messages") from error
        return features, texts

    def _media(self, features: dict[str, Any], tokens: list[int]) -> dict[str, torch.Tensor]:
        unused = {"num_tiles", *self.processor.unused_input_names}
        media = {name: value for name, value in features.items() if name not in unused}
        wanted = self.processor.model_input_names
        if "cross_attention_mask" in wanted:
            media["cross_attention_mask"] = self._cross_attention(features["num_tiles"], tokens)
        if "mm_token_type_ids" in wanted:
            media["mm_token_type_ids"] = torch.tensor(self.processor.create_mm_token_type_ids([tokens]))
        return media

    def _cross_attention(self, tiles: list[list[int]], tokens: list[int]) -> torch.Tensor:
        """Which tokens see which tiles, of shape (1, tokens, images, tiles): those behind an image see it."""
        spans = get_cross_attention_token_mask(tokens, self.processor.image_token_id)
        found = convert_sparse_cross_attention_mask_to_dense(
            [spans], tiles, max_num_tiles=self.processor.image_processor.max_image_tiles, length=len(tokens)
        )
        return torch.from_numpy(found)

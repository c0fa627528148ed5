"""A model that writes: its engine, and what is served of it."""

from llama_stack_lite.api.models import ModelCard
from llama_stack_lite.local.chat import Chat
from llama_stack_lite.local.served import Served
from llama_stack_lite.prompting.formats import detect
from llama_stack_lite.prompting.template import ChatTemplate
from llama_stack_lite.stack import Stack

from .cache import Together
from .engine import Engine
from .loading import Checkpoint, placed
from .vision import Vision
from .vocab import Vocab


class Writer:
    """A loaded model and its chat; raises `ConfigError` where the files or the device will not do."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        stack: Stack,
        *,
        device: str,
        dtype: str,
        context: int,
        slots: int,
        queue: int,
        stream_interval: float,
    ) -> None:
        model = checkpoint.model(device=device, dtype=dtype)
        self.card = described(checkpoint, context=context)
        self.memory: int = model.get_memory_footprint()
        length = self.card.context_length or context
        ends = model.generation_config.eos_token_id if model.generation_config else None
        vocab = Vocab(
            checkpoint.tokenizer,
            size=model.config.get_text_config().vocab_size,
            ends=[ends] if isinstance(ends, int) else ends or [],
        )
        template = ChatTemplate(
            checkpoint.chat_template, bos=vocab.bos_text, eos=vocab.eos_text, specials=vocab.specials
        )
        self.vision = Vision(checkpoint.processor, vocab) if checkpoint.sees else None
        self.engine = Engine(
            model, vocab, context_length=length, slots=slots, queue=queue, interval=stream_interval
        )
        how = "together" if isinstance(self.engine.memory, Together) else "each by itself"
        self.detail = f"{slots} contexts of {length} tokens, {how}, on {placed(model)}"
        self.served = Served(
            card=self.card,
            engine=self.engine,
            vocab=vocab,
            template=template,
            context_length=length,
            sight=self.vision,
        )
        self.chat = Chat(self.served, stack)

    @property
    def broken(self) -> str | None:
        return self.engine.broken

    def close(self) -> None:
        if self.vision:
            self.vision.close()
        self.engine.close()


def described(checkpoint: Checkpoint, *, context: int) -> ModelCard:
    """The card with the facts that the files add; `context` is what is configured, in tokens."""
    card, config = checkpoint.card, checkpoint.config
    trained = getattr(config.get_text_config(), "max_position_embeddings", None) or context
    facts = {
        "kind": "chat",
        "context_length": min(context, trained),
        "family": card.family or config.model_type,
        "vision": checkpoint.sees,
        "tool_calling": card.tool_calling or detect(checkpoint.chat_template),
    }
    return card.model_copy(update=facts)

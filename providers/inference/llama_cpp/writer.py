"""A model that writes: its engine, and what is served of it with and without a LoRA adapter."""

from pathlib import Path

from llama_stack_lite.api.models import ModelCard
from llama_stack_lite.errors import ConfigError, Unavailable
from llama_stack_lite.local.chat import Chat
from llama_stack_lite.local.served import Served
from llama_stack_lite.models import paths
from llama_stack_lite.prompting.formats import detect
from llama_stack_lite.prompting.template import ChatTemplate
from llama_stack_lite.stack import Stack

from .batch import BATCH
from .engine import Engine
from .loading import Loaded, Weights


class Writer:
    """A loaded model and its chats, by the name of the adapter; None is the bare model's.

    Raises `ConfigError` where the file, the memory or the chat template will not do.
    """

    def __init__(
        self,
        card: ModelCard,
        stack: Stack,
        *,
        context: int,
        slots: int,
        queue: int,
        threads: int,
        adapters: dict[str, Path],
    ) -> None:
        loaded = Loaded(
            gguf(card), context=context, slots=slots, threads=threads, batch=BATCH, adapters=adapters
        )
        vocab, self.refused, self.memory = loaded.vocab, loaded.refused, loaded.size
        try:
            template = ChatTemplate(
                loaded.weights.chat_template(),
                bos=vocab.bos_text,
                eos=vocab.eos_text,
                specials=vocab.specials,
            )
        except ConfigError:
            loaded.close()
            raise
        self.card = described(card, loaded.weights, context=loaded.context_length)
        self.engine = Engine(loaded, slots=slots, queue=queue)
        self.served = {
            adapter: Served(
                card=self.card,
                engine=self.engine,
                vocab=vocab,
                template=template,
                context_length=loaded.context_length,
                adapter=adapter,
            )
            for adapter in (None, *loaded.adapters)
        }
        self.chats = {adapter: Chat(served, stack) for adapter, served in self.served.items()}

    @property
    def broken(self) -> str | None:
        return self.engine.broken

    def check(self, adapter: str | None) -> None:
        """Raise `Unavailable` where an adapter was refused."""
        if adapter in self.refused:
            raise Unavailable(self.refused[adapter])

    def close(self) -> None:
        self.engine.close()


def gguf(card: ModelCard) -> Path:
    """The file to load; raises `ConfigError` where the card has none, or it is not here."""
    files = [path for name, path in paths(card).items() if name.endswith(".gguf")]
    if not files:
        raise ConfigError(f"`{card.id}` has no .gguf file, and llama-cpp reads no other")
    return files[0]


def described(card: ModelCard, weights: Weights, *, context: int) -> ModelCard:
    """The card with the facts that the file adds; `context` is what is configured, in tokens."""
    facts = {
        "context_length": min(context, weights.trained_context),
        "family": card.family or weights.architecture,
    }
    if card.kind == "chat":
        facts["tool_calling"] = card.tool_calling or detect(weights.chat_template())
    return card.model_copy(update=facts)

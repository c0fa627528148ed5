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
from .quantizing import prepared
from .threads import Threads
from .vision import mmproj_of


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
        stream_interval: float,
        flash_attention: bool | None,
        threads: Threads,
        adapters: dict[str, Path],
    ) -> None:
        path, mmproj = files(card)
        loaded = Loaded(
            prepared(card, path),
            context=context,
            slots=slots,
            threads=threads.few,
            batch=BATCH,
            flash=flash_attention,
            mmproj=mmproj,
            adapters=adapters,
        )
        vocab, self.refused = loaded.vocab, loaded.refused
        self.memory, self.detail = loaded.size, f"{loaded.detail}, threads: {threads}"
        template = _template(loaded)
        self.card = described(card, loaded.weights, context=loaded.context_length, sees=mmproj is not None)
        self.engine = Engine(loaded, slots=slots, queue=queue, interval=stream_interval, threads=threads)
        self.served = {
            adapter: Served(
                card=self.card,
                engine=self.engine,
                vocab=vocab,
                template=template,
                context_length=loaded.context_length,
                sight=loaded.vision,
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


def _template(loaded: Loaded) -> ChatTemplate:
    vocab = loaded.vocab
    try:
        return ChatTemplate(
            loaded.weights.chat_template(), bos=vocab.bos_text, eos=vocab.eos_text, specials=vocab.specials
        )
    except ConfigError:
        loaded.close()
        raise


def files(card: ModelCard) -> tuple[Path, Path | None]:
    """The model's file, and its mmproj where it sees.

    Raises `ConfigError` where the card has none, or it is not here, or it is not clear which is which.
    """
    found = [path for name, path in paths(card).items() if name.endswith(".gguf")]
    mmproj = mmproj_of(found, card=card)
    models = [path for path in found if path != mmproj]
    if len(models) != 1:
        names = ", ".join(path.name for path in models) or "no .gguf file"
        raise ConfigError(f"`{card.id}` has {names}, and llama-cpp reads one model of one GGUF file")
    return models[0], mmproj


def described(card: ModelCard, weights: Weights, *, context: int, sees: bool) -> ModelCard:
    """The card with the facts that the files add; `context` is what is configured, in tokens."""
    facts = {
        "context_length": min(context, weights.trained_context),
        "family": card.family or weights.architecture,
        "vision": sees,
    }
    if card.kind == "chat":
        facts["tool_calling"] = card.tool_calling or detect(weights.chat_template())
    return card.model_copy(update=facts)

"""Model files that lie on this disk, or on one that is mounted: `file:/path/to/model.gguf`."""

from collections.abc import Callable
from pathlib import Path

from llama_stack_lite.errors import UpstreamError
from llama_stack_lite.models import no_such_file, save


class File:
    """Copies a file; asked only where a card has a checksum, for other local files are used in place."""

    needs_network = False

    def fetch(self, reference: str, target: Path, progress: Callable[[int, int | None], None]) -> None:
        path = Path(reference).expanduser()
        if not path.is_file():
            raise no_such_file(path)
        total = path.stat().st_size
        done = target.stat().st_size if target.exists() else 0
        if done > total:
            done = 0
        try:
            stream = path.open("rb")
        except PermissionError as error:
            raise UpstreamError(f"{path} may not be read by this user") from error
        with stream:
            stream.seek(done)
            save(stream, target, done=done, total=total, progress=progress)

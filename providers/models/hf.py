"""Model files on the Hugging Face Hub: `hf:user/repo/path/file.gguf`, or `hf:user/repo@revision/...`."""

import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http import HTTPStatus
from pathlib import Path

from huggingface_hub import HfApi, constants, get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import (  # type: ignore[attr-defined]  # HTTPError: of httpx or httpx2
    EntryNotFoundError,
    GatedRepoError,
    HFValidationError,
    HTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import (  # type: ignore[attr-defined]  # the package lists no exports
    build_hf_headers,
    get_session,
    hf_raise_for_status,
)

from llama_stack_lite.errors import InvalidRequest, NotFound, UpstreamError
from llama_stack_lite.models import CHUNK, sha256


class HuggingFace:
    """Takes a file from the hub's own cache, or downloads it, resuming where the last attempt stopped.

    HF_HOME, HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE mean what they mean to huggingface_hub. Not its
    `hf_hub_download`, which starts afresh after an interruption and leaves a second copy in its cache.
    """

    needs_network = True

    def fetch(self, reference: str, target: Path, progress: Callable[[int, int | None], None]) -> None:
        user, _, rest = reference.partition("/")
        name, _, path = rest.partition("/")
        name, _, revision = name.partition("@")
        repo = f"{user}/{name}"
        if not (user and name and path):
            raise InvalidRequest(f"`hf:{reference}` should read hf:user/repo/path/file.gguf")
        with _explained(repo, path, revision or None):
            cached = try_to_load_from_cache(repo, path, revision=revision or None)
            if isinstance(cached, str):
                _link(Path(cached).resolve(), target, progress)
            else:
                _download(hf_hub_url(repo, path, revision=revision or None), target, progress)


def _link(cached: Path, target: Path, progress: Callable[[int, int | None], None]) -> None:
    size = cached.stat().st_size
    target.unlink(missing_ok=True)
    try:
        os.link(cached, target)
    except OSError:  # on another disk
        progress(0, size)
        shutil.copyfile(cached, target)
    progress(size, size)


def _download(url: str, target: Path, progress: Callable[[int, int | None], None]) -> None:
    """Fetch what is missing of a file, going on after every broken connection that brought something."""
    metadata = get_hf_file_metadata(url)
    size, done = metadata.size, target.stat().st_size if target.exists() else 0
    if size is not None and done > size:
        done = 0
    progress(done, size)
    with target.open("ab" if done else "wb") as file:
        while size is None or done < size:
            before = done
            try:
                for chunk in _stream(url, done):
                    file.write(chunk)
                    done += len(chunk)
                    progress(done, size)
            except HTTPError:
                if done == before:
                    raise
            else:
                if size is None or done == before:
                    break
    _verify(target, metadata.etag, size)


def _stream(url: str, start: int) -> Iterator[bytes]:
    headers = build_hf_headers() | {"Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
    with get_session().stream("GET", url, headers=headers, timeout=timeout) as response:
        hf_raise_for_status(response)
        skip = 0 if response.status_code == HTTPStatus.PARTIAL_CONTENT else start
        for chunk in response.iter_bytes(CHUNK):
            yield chunk[skip:]
            skip = max(0, skip - len(chunk))


def _verify(target: Path, etag: str | None, size: int | None) -> None:
    """Large files have their sha256 as etag; it also shows a file that changed between two attempts."""
    got = target.stat().st_size
    if size is not None and got < size:
        raise UpstreamError(f"{got} bytes came of {size}")
    if etag is None or not re.fullmatch("[0-9a-f]{64}", etag):
        return
    if (digest := sha256(target)) != etag:
        target.unlink()
        raise UpstreamError(f"the file's sha256 is {digest}, the hub says {etag}; it was deleted")


@contextmanager
def _explained(repo: str, path: str, revision: str | None) -> Iterator[None]:
    """Tell the hub's errors in our terms; an error of this disk (it has an errno) is not the hub's."""
    try:
        yield
    except HFValidationError as error:
        raise InvalidRequest(f"`{repo}` is no repository of the hub: {_line(error)}") from error
    except GatedRepoError as error:
        terms = f"{constants.ENDPOINT}/{repo}"
        raise UpstreamError(f"{repo} is gated: accept its terms at {terms}, then set HF_TOKEN") from error
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        name = f"{repo}@{revision}" if revision else repo
        raise UpstreamError(f"there is no repository {name}, or HF_TOKEN may not see it") from error
    except EntryNotFoundError as error:
        raise NotFound(f"file in {repo}", path, _names(repo, revision)) from error
    except HTTPError as error:
        raise UpstreamError(f"{constants.ENDPOINT} failed: {_line(error)}") from error
    except OSError as error:
        if error.errno is not None:
            raise
        raise UpstreamError(_line(error)) from error


def _names(repo: str, revision: str | None) -> list[str]:
    with suppress(HTTPError, OSError):
        return HfApi().list_repo_files(repo, revision=revision)
    return []


def _line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__

"""Files in a bucket of S3, or of a server that speaks like it (MinIO, Ceph, R2), by obstore."""

import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import obstore
from obstore.exceptions import (
    BaseError,
    NotFoundError,
    PermissionDeniedError,
    UnauthenticatedError,
)
from obstore.store import S3Store
from pydantic import BaseModel, ConfigDict, Field, SecretStr

from llama_stack_lite.api.ids import well_formed
from llama_stack_lite.errors import NotFound, Unavailable

PIECE = 1024 * 1024  # bytes
log = logging.getLogger(__name__)


class S3:
    """A file is the object `<prefix>/<name>`; it is whole or not there, as S3 has it."""

    class Config(BaseModel):
        model_config = ConfigDict(extra="forbid")
        bucket: str = Field(min_length=1)
        prefix: str = Field("", description="of every object's name, such as `llama-lite/files`")
        endpoint: str | None = Field(None, description="of a server that is not Amazon's")
        region: str = "us-east-1"
        access_key_id: SecretStr | None = Field(None, description="by default as in the environment")
        secret_access_key: SecretStr | None = None
        allow_http: bool = Field(False, description="whether the endpoint may be asked without TLS")
        timeout: float = Field(60, gt=0, description="seconds for one request of the bucket")

    def __init__(self, config: Config) -> None:
        self.config = config
        secrets = {name: getattr(config, name) for name in ("access_key_id", "secret_access_key")}
        settings: dict[str, Any] = {
            name: value.get_secret_value() for name, value in secrets.items() if value is not None
        }
        if config.endpoint:
            settings["endpoint"] = config.endpoint
        self.bucket = S3Store(
            config.bucket,
            prefix=config.prefix or None,
            region=config.region,
            client_options={"allow_http": config.allow_http, "timeout": timedelta(seconds=config.timeout)},
            retry_config={"max_retries": 3, "retry_timeout": timedelta(seconds=config.timeout)},
            **settings,
        )

    async def put(self, name: str, source: Path, *, digest: str) -> None:
        with self._telling(name):
            await obstore.put_async(self.bucket, _key(name), source, max_concurrency=4)

    async def read(self, name: str) -> AsyncGenerator[bytes, None]:
        with self._telling(name):
            found = await obstore.get_async(self.bucket, _key(name))
            async for piece in found.stream(min_chunk_size=PIECE):
                whole = memoryview(piece)
                for start in range(0, len(whole), PIECE):
                    yield bytes(whole[start : start + PIECE])

    async def remove(self, name: str) -> None:
        with self._telling(name):
            await obstore.delete_async(self.bucket, _key(name))

    async def names(self, *, older: float) -> AsyncIterator[str]:
        before = time.time() - older
        with self._telling("*"):
            async for group in obstore.list(self.bucket, chunk_size=500):
                for each in group:
                    if each["last_modified"].timestamp() < before and "/" not in each["path"]:
                        yield each["path"]

    @contextmanager
    def _telling(self, name: str) -> Iterator[None]:
        """The library's errors as ours: their own words may quote what was signed, and keys."""
        try:
            yield
        except (NotFoundError, FileNotFoundError) as error:
            if "NoSuchBucket" in str(error):
                raise Unavailable(f"there is no bucket `{self.config.bucket}`") from error
            raise NotFound("file", name) from error
        except (PermissionDeniedError, UnauthenticatedError, PermissionError) as error:
            raise Unavailable(f"the bucket `{self.config.bucket}` did not accept the credentials") from error
        except (BaseError, OSError) as error:
            log.warning("the bucket %s failed: %s", self.config.bucket, type(error).__name__)
            raise Unavailable(f"the bucket `{self.config.bucket}` cannot be reached, or failed") from error


def _key(name: str) -> str:
    if not well_formed(name) or not name.strip(".:"):
        raise NotFound("file", name)
    return name

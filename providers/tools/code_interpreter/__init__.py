"""A tool that runs a model's Python code: in bubblewrap, without network, as a user without rights."""

import asyncio
import hashlib
import logging
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from llama_stack_lite.api.containers import Container as ContainerObject
from llama_stack_lite.api.containers import ContainerFile, ExpiresAfter
from llama_stack_lite.api.inference import FunctionDefinition
from llama_stack_lite.api.tools import ToolResult
from llama_stack_lite.errors import Busy, InvalidRequest, NotFound, Unavailable

from .container import Container, File, Gone, Outcome
from .sandbox import FOLDER, Off, Sandbox, find, try_out

log = logging.getLogger(__name__)

MIB = 1024 * 1024
LONGEST_CODE = MIB  # characters
REMEMBERED = 10_000  # sessions whose container is gone, so that they can be told
ENDINGS = {
    "timeout": "it ran longer than {timeout:g} seconds",
    "memory": "it used more than {memory:g} MiB of memory",
    "output": "it printed more than {output:g} KiB",
    "files": "it made more than {files:g} files",
    "stopped": "nobody waits for it any more",
    "died": "the interpreter exited or crashed",
}


class CodeInterpreter:
    """One tool, `python`. Each session has a container: variables and files stay between its calls.

    Where this machine cannot shut code in, the tool is off: `tools` and `call` say why, and nothing runs.
    A container's own id may stand in the place of a session.
    """

    kind: Literal["code_interpreter"] = "code_interpreter"

    class Config(BaseModel):
        model_config = ConfigDict(extra="forbid")
        timeout: float = Field(30, gt=0, le=3600, description="seconds for one call")
        memory: int = Field(512, ge=64, description="MiB for all of a container's processes")
        max_output: int = Field(1024, ge=1, description="KiB that one call may print")
        max_text: int = Field(16_000, ge=200, description="characters of it that the model reads")
        max_bytes: int = Field(100, ge=1, description="MiB of files in a container")
        max_files: int = Field(1000, ge=1, description="files in a container")
        processes: int = Field(32, ge=1, description="processes and threads in a container")
        containers: int = Field(16, ge=1, description="at once; one more ends the longest unused")
        idle: float = Field(1200, gt=0, description="seconds after which an unused container ends")
        python: Path | None = Field(
            None, description="by default the one that runs the server, or the system's"
        )
        packages: list[Path] = Field([], description="folders of packages that code may import")
        uid: int = Field(65534, ge=1, description="the user to run code as, where the server is root")

    def __init__(self, config: Config) -> None:
        self.config = config
        self.off: str | None = None
        self._sandbox: Sandbox | None = None
        self._containers: dict[str, Container] = {}
        self._sessions: dict[str, str] = {}
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._ended: OrderedDict[str, None] = OrderedDict()
        try:
            self._sandbox = self._found()
        except Off as reason:
            self.off = f"code_interpreter is off: {reason}"
            log.warning("%s", self.off)

    def _found(self) -> Sandbox:
        config = self.config
        limits: dict[str, float] = {
            "timeout": config.timeout,
            "memory": config.memory * MIB,
            "output": config.max_output * 1024,
            "bytes": config.max_bytes * MIB,
            "files": config.max_files,
            "processes": config.processes,
        }
        for path in config.packages:
            if not path.is_dir():
                raise Off(f"`packages` names {path}, which is no folder")
        sandbox = find(python=config.python, user=config.uid, limits=limits, packages=config.packages)
        try_out(sandbox)
        return sandbox

    async def tools(self) -> list[FunctionDefinition]:
        """The one tool; raises `Unavailable` where it is off."""
        config, version = self.config, self._ready().python.version
        description = (
            f"Run Python {version} and read what it prints, with the value of its last expression. "
            f"Variables, and files in {FOLDER}, are kept between calls. There is no network, no shell and no "
            f"package beyond the standard library{' and those installed' if config.packages else ''}. "
            f"A call may take {config.timeout:g} seconds and {config.memory} MiB."
        )
        code = {"type": "string", "description": "the program's text"}
        parameters = {
            "type": "object",
            "properties": {"code": code},
            "required": ["code"],
            "additionalProperties": False,
        }
        return [FunctionDefinition(name="python", description=description, parameters=parameters)]

    async def call(self, name: str, arguments: dict[str, Any], *, session: str) -> ToolResult:
        self._ready()
        code = arguments.get("code")
        if name != "python":
            return ToolResult(text=f"there is no tool `{name}`, only `python`", error=True)
        if not isinstance(code, str) or len(code) > LONGEST_CODE:
            return ToolResult(
                text=f"`code` must be a string of at most {LONGEST_CODE} characters", error=True
            )
        container, note = self._of(session), ""
        if self._ended.pop(session, ...) is None:
            note = "[A new container: variables and files of earlier calls are gone.]\n"
        try:
            outcome, output = await container.run(code)
        except Gone as gone:
            self._end(container)
            self._ended.pop(session, None)  # they are told now
            return self._result(container, code, note, f"[Stopped: {gone}.]", error=True)
        ending = self._ending(outcome)
        return self._result(container, code, note + output, ending, error=outcome.how != "done")

    def _ending(self, outcome: Outcome) -> str:
        if outcome.how in ("done", "raised") and outcome.kept:
            return ""
        config = self.config
        limits = {
            "timeout": config.timeout,
            "memory": config.memory,
            "output": config.max_output,
            "files": config.max_files,
        }
        reason = ENDINGS.get(outcome.how, "it left processes that could not be ended").format(**limits)
        return f"[Stopped: {reason}. Its variables are gone, the files in {FOLDER} are kept.]"

    def _result(
        self, container: Container, code: str, output: str, ending: str, *, error: bool
    ) -> ToolResult:
        logs = "\n".join(part for part in (output.rstrip("\n") if ending else output, ending) if part)
        details = {
            "container_id": container.id,
            "code": code,
            "outputs": [{"type": "logs", "logs": logs}] if logs else [],
        }
        text = shortened(logs, self.config.max_text) or "(It printed nothing.)"
        return ToolResult(text=text, error=error, details=details)

    # ------------------------------------------------------------ containers

    def create(self, name: str) -> ContainerObject:
        """Make a container of no session; raises `Busy` where all that may be are at work."""
        return self._object(self._new(name))

    def containers(self) -> list[ContainerObject]:
        """Those that `create` made; who learns of a session's container could read what is in it."""
        theirs = set(self._sessions.values())
        return [self._object(each) for each in self._containers.values() if each.id not in theirs]

    def has(self, container_id: str) -> bool:
        """Whether there is such a container, a session's or another."""
        return container_id in self._containers

    def container(self, container_id: str) -> ContainerObject:
        """Raises `NotFound`."""
        return self._object(self._known(container_id))

    def end(self, container_id: str) -> None:
        """End a container and all that is in it; raises `NotFound`."""
        self._end(self._known(container_id))

    async def write(self, session: str, name: str, data: bytes) -> ContainerFile:
        """Put a file into a session's container, which is made if need be."""
        if len(data) > self.config.max_bytes * MIB:
            raise InvalidRequest(f"a container holds {self.config.max_bytes} MiB at most", param="file")
        container = self._of(session)
        await container.write(name, data)
        return file_object(container, File(name, len(data), int(time.time())))

    async def files(self, session: str) -> list[ContainerFile]:
        """The files of a session's work folder by name; none where it has no container."""
        if session not in self._containers and session not in self._sessions:
            return []
        container = self._of(session)
        return [file_object(container, file) for file in await container.files()]

    async def read(self, session: str, name: str) -> bytes:
        """The content of a file; raises `NotFound`."""
        return await self._known(self._sessions.get(session, session)).read(name)

    async def remove(self, session: str, name: str) -> None:
        """Remove a file; raises `NotFound`."""
        await self._known(self._sessions.get(session, session)).remove(name)

    async def aclose(self) -> None:
        for container in list(self._containers.values()):
            self._end(container)
        self._ended.clear()

    def _ready(self) -> Sandbox:
        if self._sandbox is None:
            raise Unavailable(self.off or "code_interpreter is off")
        return self._sandbox

    def _of(self, session: str) -> Container:
        """The container of a session, or of that id."""
        known = self._containers.get(self._sessions.get(session, session))
        if known is not None and not known.closed:
            return known
        if known is not None:
            self._end(known)
        container = self._new("")
        self._sessions[session] = container.id
        return container

    def _known(self, container_id: str) -> Container:
        found = self._containers.get(container_id)
        if found is None or found.closed:
            raise NotFound("container", container_id)
        return found

    def _new(self, name: str) -> Container:
        sandbox = self._ready()
        if len(self._containers) >= self.config.containers:
            unused = [container for container in self._containers.values() if not container.waiting]
            if not unused:
                raise Busy(f"all {self.config.containers} containers are running code: try again")
            self._end(min(unused, key=lambda container: container.used_at))
        container = Container(sandbox, name=name)
        self._containers[container.id] = container
        self._watch(container)
        return container

    def _watch(self, container: Container) -> None:
        """End the container once it has been unused for long enough."""
        left = container.used_at + self.config.idle - time.time()
        if left <= 0 and not container.waiting:
            self._end(container)
            return
        loop = asyncio.get_running_loop()
        self._timers[container.id] = loop.call_later(max(left, 1), self._watch, container)

    def _end(self, container: Container) -> None:
        container.close()
        self._containers.pop(container.id, None)
        if timer := self._timers.pop(container.id, None):
            timer.cancel()
        for session in [key for key, value in self._sessions.items() if value == container.id]:
            del self._sessions[session]
            self._ended[session] = None
        while len(self._ended) > REMEMBERED:
            self._ended.popitem(last=False)

    def _object(self, container: Container) -> ContainerObject:
        return ContainerObject(
            id=container.id,
            created_at=int(container.created_at),
            last_active_at=int(container.used_at),
            name=container.name,
            expires_after=ExpiresAfter(minutes=max(1, round(self.config.idle / 60))),
        )


def file_object(container: Container, file: File) -> ContainerFile:
    """A file as the API shows it; its id is its name, as a word that fits into a path."""
    digest = hashlib.sha256(f"{container.id}/{file.name}".encode()).hexdigest()
    return ContainerFile(
        id=f"cfile_{digest[:48]}",
        bytes=file.size,
        container_id=container.id,
        created_at=file.written,
        path=f"{FOLDER}/{file.name}",
        source="user" if file.name in container.uploaded else "assistant",
    )


def shortened(text: str, most: int) -> str:
    """The text, or its beginning and its end where it is longer than that."""
    if len(text) <= most:
        return text
    half = most // 2
    return f"{text[:half]}\n[... {len(text) - 2 * half} characters are left out ...]\n{text[-half:]}"

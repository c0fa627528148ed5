"""Workers of the background: they lease turns from the database, and go on with those of dead servers."""

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from dataclasses import dataclass

from llama_stack_lite.api.responses import Event, MCPServer, Response, ResponseRequest
from llama_stack_lite.errors import InvalidRequest, StackError, Unavailable
from llama_stack_lite.state import archive, leases
from llama_stack_lite.state.archive import HIGHEST, Kept
from llama_stack_lite.state.journal import LeaseLost, Record

from .failing import failure
from .feeds import Feeds
from .resuming import resumed, waits
from .turn import Turn, Turns, run

log = logging.getLogger(__name__)

GONE = StackError("the server stopped before this response ended")
KEYLESS = StackError("the server that had the keys for its tools stopped; send the request again")
ATTEMPTS = 3  # after which a turn that ends its server each time is given up
BURIED = 20  # turns of clients, whose server is gone, that are ended at once
KEEP_EVERY = 0.05  # seconds after which events are kept, and shown, at the latest
LOOK_EVERY = 1  # seconds between two looks for turns that wait, and for those to be cancelled
GRACE = 3  # seconds that calls of tools get when the server stops


@dataclass(eq=False)
class Work:
    """A turn that is worked on here."""

    task: "asyncio.Task[None]"
    turn: Turn | None = None
    cancelled: bool = False

    def cancel(self) -> None:
        """End the turn; one that has not begun sees it by itself."""
        if not self.cancelled:
            self.cancelled = True
            if self.turn:
                self.task.cancel()

    def calling(self) -> bool:
        """Whether a tool is at work, of which nobody would know what it did."""
        output = self.turn.response.output if self.turn else []
        return any(
            item.type.endswith("_call") and getattr(item, "status", None) == "in_progress"
            for item in output
            if item.type != "function_call"
        )


class Workers:
    """Works on the turns of the background, so many at once."""

    def __init__(self, turns: Turns, feeds: Feeds) -> None:
        self.turns = turns
        self.feeds = feeds
        self.store = turns.store
        self.settings = turns.stack.config.turns
        self._working: dict[str, Work] = {}
        self._secrets: dict[str, ResponseRequest] = {}  # requests whose tools' keys nobody else has
        self._queued: set[str] = set()  # those of them that are in the database
        self._wake = asyncio.Event()
        self._stopping = False
        self._loops: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin to look for turns that wait, and to keep the leases of those in progress."""
        loops = (self._claiming(), self._minding(), self.feeds.look())
        self._loops = [asyncio.create_task(each) for each in loops]

    async def aclose(self) -> None:
        """Stop; what is not done, another server goes on with, or the next start."""
        self._stopping = True
        self._wake.set()
        if self._loops:
            await asyncio.wait(self._loops[:1], timeout=GRACE)  # a lease that is being taken is let go below
        await self._drained()
        for loop in self._loops:
            loop.cancel()
        await asyncio.gather(*self._loops, return_exceptions=True)
        with suppress(StackError):
            await leases.release(self.store, self.turns.worker)

    async def _drained(self) -> None:
        """Stop all work, at once where no call of a tool is cut off by that."""
        loop, left = asyncio.get_running_loop(), list(self._working.values())
        late, tasks = loop.time() + GRACE, [work.task for work in left]
        while left:
            calling = [work for work in left if work.calling() and loop.time() < late]
            for work in left:
                if work not in calling:
                    work.task.cancel()
            left = [work for work in calling if not work.task.done()]
            await asyncio.sleep(KEEP_EVERY)
        if tasks:
            await asyncio.wait(tasks, timeout=GRACE)

    # ------------------------------------------------------------ for clients

    async def queue(self, request: ResponseRequest) -> Response:
        """Keep a turn for the background; raises `Busy` where too many wait."""
        turn = await self.turns.begin(request)
        record = turn.journal
        assert isinstance(record, Record)
        record.kept.secret = any(isinstance(tool, MCPServer) and tool.secret() for tool in request.tools)
        if record.kept.secret and not self.settings.workers:
            raise InvalidRequest("tools: keys are not kept, and this server has no workers", param="tools")
        if await turn.blocked():  # what is kept has been judged
            async with aclosing(run(turn)) as refusal:
                async for event in refusal:
                    record.tell(event)
            return turn.response
        events = [turn.whole("response.created"), turn.whole("response.queued")]
        if record.kept.secret:
            self._secrets[turn.response.id] = record.kept.request
        try:
            await record.queue(turn.response, events, most=self.settings.queue)
        except StackError:
            self._secrets.pop(turn.response.id, None)
            raise
        if record.kept.secret:
            self._queued.add(turn.response.id)
        self._wake.set()
        return turn.response

    def events(self, response_id: str, *, after: int = -1) -> AsyncGenerator[Event, None]:
        """The events of a background turn with numbers above `after`, as they come, to the last one."""
        return self.feeds.read(response_id, after=after)

    async def resumed(self, response_id: str, *, after: int) -> AsyncGenerator[Event, None]:
        """As `events`; raises `InvalidRequest` for a response whose events were not kept."""
        if not (await archive.get(self.store, response_id)).request.background:
            raise InvalidRequest("stream: only background responses can be streamed again", param="stream")
        async with aclosing(self.events(response_id, after=after)) as events:
            async for event in events:
                yield event

    async def cancel(self, response_id: str) -> Response:
        """End a turn of the background, and return it; one that has ended stays as it is.

        Raises `NotFound`, and `InvalidRequest` where it is none of the background.
        """
        lease = self.settings.lease
        mine = await leases.cancel(self.store, response_id, worker=self.turns.worker, lease=lease)
        if mine:
            await self._end(mine)
        elif work := self._working.get(response_id):
            work.cancel()
        async with aclosing(self.events(response_id, after=HIGHEST)) as end:
            async for _ in end:
                pass
        return (await archive.get(self.store, response_id)).response

    # ------------------------------------------------------------ what goes on all the time

    async def _claiming(self) -> None:
        """Take what waits, as long as there is a worker for it."""
        while not self._stopping:
            self._wake.clear()
            try:
                while len(self._working) < self.settings.workers and not self._stopping:
                    if not await self._claimed():
                        break
            except StackError as error:
                log.error("background responses wait: %s", error)
            except Exception:
                log.exception("background responses wait")
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_EVERY):
                    await self._wake.wait()

    async def _claimed(self) -> bool:
        lease, without = self.settings.lease, self._working.keys()
        response_id = await leases.claim(self.store, self.turns.worker, lease=lease, without=without)
        if response_id:
            task = asyncio.create_task(self._work(response_id))
            self._working[response_id] = Work(task)
            task.add_done_callback(lambda _: self._left(response_id))
        return response_id is not None

    def _left(self, response_id: str) -> None:
        del self._working[response_id]
        self._wake.set()

    async def _minding(self) -> None:
        loop, every = asyncio.get_running_loop(), self.settings.lease / 4
        renewed = buried = -every
        while True:
            await asyncio.sleep(min(LOOK_EVERY, every))
            try:
                if held := {*self._working, *self._queued, *self.turns.following}:
                    if loop.time() - renewed >= every:
                        await leases.renew(self.store, self.turns.worker, held, lease=self.settings.lease)
                        renewed = loop.time()
                    self._stop(held, await leases.cancelled(self.store, self.turns.worker, held))
                if loop.time() - buried >= every:
                    await self._bury()
                    buried = loop.time()
            except StackError as error:
                log.error("leases could not be renewed: %s", error)
            except Exception:
                log.exception("leases could not be renewed")

    def _stop(self, held: set[str], cancelled: dict[str, bool]) -> None:
        """Stop work on turns that are to be cancelled, or that are no longer this worker's."""
        gone = held - cancelled.keys()
        for response_id in gone & self._queued:
            self._queued.discard(response_id)
            del self._secrets[response_id]
        for response_id, work in self._working.items():
            if cancelled.get(response_id):
                work.cancel()
            elif response_id in gone and work.turn and not work.turn.response.ended():
                work.task.cancel()

    async def _bury(self) -> None:
        """End the turns whose client went with the server that worked on them."""
        for _ in range(BURIED):
            lease, worker = self.settings.lease, self.turns.worker
            found = await leases.claim(
                self.store, worker, lease=lease, background=False, without=self.turns.following
            )
            if found is None:
                return
            await self._work(found)

    # ------------------------------------------------------------ one turn

    async def _work(self, response_id: str) -> None:
        """Work on a turn to its end, from where it was left."""
        try:
            kept = await archive.get(self.store, response_id)
            if request := self._secrets.get(response_id):
                kept.request = request
            if kept.cancelled:
                await self._end(kept)
            elif reason := self._hopeless(kept):
                await self._end(kept, reason)
            else:
                await self._through(kept)
        except LeaseLost as error:
            log.warning("%s", error)
        except StackError as error:
            log.error("response %s waits until its lease runs out: %s", response_id, error)
        except Exception:
            log.exception("response %s cannot be worked on", response_id)
            why = failure(StackError("internal error; the server's log has it"))
            with suppress(StackError):
                await leases.abandon(self.store, response_id, worker=self.turns.worker, why=why)

    def _hopeless(self, kept: Kept) -> StackError | None:
        """Why a turn cannot go on."""
        if not kept.response.background:
            return GONE
        if kept.attempts > ATTEMPTS:
            return StackError(f"given up: the server stopped {ATTEMPTS} times while it worked on this")
        if kept.secret and kept.response.id not in self._secrets:
            return KEYLESS
        return None

    async def _end(self, kept: Kept, error: StackError | None = None) -> None:
        """End a turn as it is: failed by an error, or cancelled."""
        record = self.turns.record(kept)
        turn = Turn(
            stack=self.turns.stack,
            request=kept.request,
            response=kept.response,
            before=[],
            session=kept.session,
            journal=record,
            number=kept.number,
        )
        with suppress(LeaseLost):  # then it has ended, or will, by somebody else's hand
            if error:
                await turn.ended("failed", error=failure(error))
            else:
                await turn.ended("cancelled")

    async def _through(self, kept: Kept) -> None:
        """All events of a turn, kept in small groups, so that streams show them soon after."""
        try:
            turn = await self.turns.again(kept)
        except Unavailable:
            raise
        except StackError as error:
            return await self._end(kept, error)
        record, work = turn.journal, self._working[kept.response.id]
        assert isinstance(record, Record)
        work.turn = turn
        keeping = asyncio.create_task(self._keeping(work.task, turn, record))
        try:
            if work.cancelled:
                await turn.ended("cancelled")
            else:
                await self._run(turn, record)
        except asyncio.CancelledError:
            if not work.cancelled:
                raise  # the server stops, or the turn is another's by now
            if not turn.response.ended():  # else its end is being kept already
                await turn.ended("cancelled")
        finally:
            keeping.cancel()
            if turn.tools:
                await turn.tools.aclose()

    async def _run(self, turn: Turn, record: Record) -> None:
        response = turn.response
        if not record.kept.resumed:
            record.tell(turn.whole("response.in_progress"))
        else:
            told, _ = await archive.events(self.store, response.id, -1)
            await record.save(response, [*range(len(response.output))], resumed(turn, told))
            if waits(turn):
                await turn.ended("completed")
                return
        async with aclosing(run(turn)) as events:
            async for event in events:
                record.tell(event)

    async def _keeping(self, task: "asyncio.Task[None]", turn: Turn, record: Record) -> None:
        """Keep events soon after they came; the work ends where that cannot be any more."""
        while True:
            await record.news.wait()
            await asyncio.sleep(KEEP_EVERY)
            try:
                await record.flush(turn.response)
            except LeaseLost as error:
                log.warning("%s", error)
                task.cancel()
                return
            except StackError as error:
                log.error("events of %s wait: %s", turn.response.id, error)
                await asyncio.sleep(LOOK_EVERY)
            except Exception:
                log.exception("events of %s cannot be kept", turn.response.id)
                task.cancel()
                return

"""What is asked of a search: by this process through a mailbox, by others through the search folder."""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from cirrus.client_backend.search_folder import SearchFolder, SearchRequest
from cirrus.errors import CirrusError, RunError

log = logging.getLogger(__name__)

#: How long a request of this process may take.
REQUEST_SECONDS = 20.0
#: How often whoever waits for one looks whether the driver is still there.
WAIT_SECONDS = 0.1


@dataclass
class _Message:
    request: SearchRequest
    key: str | None = None
    """Its object in the search folder, where it came from there."""
    done: threading.Event = field(default_factory=threading.Event)
    error: CirrusError | None = None


class Requests:
    """Hears what is asked, and keeps it until it has been carried out.

    All but :meth:`ask` and :meth:`wake` is for the driver's thread.

    Args:
        folder: The search folder.
        search_id: The search.
        obey: Begins to carry a request out; what it raises (``CirrusError``) is told whoever asked.
        poll_seconds: How long :meth:`hear` waits, and half of how often the folder is looked at.
    """

    def __init__(
        self,
        folder: SearchFolder,
        search_id: str,
        obey: Callable[[SearchRequest], None],
        poll_seconds: float,
    ) -> None:
        self._folder = folder
        self._search_id = search_id
        self._obey = obey
        self._poll_seconds = poll_seconds
        self._mailbox: queue.SimpleQueue[_Message | None] = queue.SimpleQueue()
        self._pending: list[_Message] = []
        """What was heard, and is not carried out yet."""
        self._keys_seen: set[str] = set()
        self._look_at = 0.0
        """When the folder is looked at next; monotonic seconds."""

    # From other threads.

    def ask(self, request: SearchRequest, ended: threading.Event) -> None:
        """Have a request carried out, and wait for that.

        Args:
            request: What is asked.
            ended: Set when nobody will carry it out any more.

        Raises:
            RunError: It cannot be, was not in time, or the search ended first.
        """
        message = _Message(request)
        self._mailbox.put(message)
        end = time.monotonic() + REQUEST_SECONDS
        while not message.done.wait(WAIT_SECONDS):
            if ended.is_set():
                break
            if time.monotonic() > end:
                raise RunError(f"search {self._search_id}: not done within {REQUEST_SECONDS:g} s")
        if message.error is not None:
            raise message.error
        if not message.done.is_set():
            raise RunError(f"search {self._search_id} has ended before it was done")

    def wake(self) -> None:
        """Have :meth:`hear` return at once."""
        self._mailbox.put(None)

    # The driver.

    @property
    def is_heard(self) -> bool:
        """Whether this process has asked for nothing that was not heard."""
        return self._mailbox.empty()

    @property
    def are_pending(self) -> bool:
        """Whether anything is still to be carried out."""
        return bool(self._pending)

    def hear(self) -> None:
        """Wait a little, or until somebody of this process asks for something; obey."""
        with contextlib.suppress(queue.Empty):
            message = self._mailbox.get(timeout=self._poll_seconds)
            while True:
                if message is not None:
                    self._take(message)
                message = self._mailbox.get_nowait()

    def hear_others(self) -> None:
        """Obey what other processes have left in the folder, now and then.

        Raises:
            StorageError: It cannot be read.
        """
        now = time.monotonic()
        if now < self._look_at:
            return
        for key, request in self._folder.requests():
            if key not in self._keys_seen:
                self._keys_seen.add(key)
                message = _Message(request, key)
                self._take(message)
                if message.error is not None:
                    log.warning("%s", message.error)
        self._look_at = now + 2 * self._poll_seconds

    def _take(self, message: _Message) -> None:
        try:
            self._obey(message.request)
        except CirrusError as error:
            message.error = error
        self._pending.append(message)

    def settle(self, is_done: Callable[[SearchRequest], bool], write: Callable[[], None]) -> None:
        """Tell those whose requests have been carried out, or cannot be.

        Args:
            is_done: Whether what was begun for a request has come to its end.
            write: Writes down what has become of everything; comes before anybody is told.
        """
        for message in list(self._pending):
            if message.error is None and not is_done(message.request):
                continue
            write()
            if message.key is not None:
                self._folder.finish_request(message.key)
            message.done.set()
            self._pending.remove(message)

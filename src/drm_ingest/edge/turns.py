"""Long work in turns: a slice of it, then whatever else the event loop has to do, then the next slice.

One piece of work after the other, so that only one at a time is in memory decompressed and taken apart.
"""

import asyncio
from collections import deque
from collections.abc import Generator

Work = Generator[None, None, None]
"""Yields after each slice; raises nothing."""


class Turns:
    """The long work of a process."""

    def __init__(self) -> None:
        self._waiting: deque[Work] = deque()

    def add(self, work: Work) -> None:
        """Begin it when those before it are done."""
        self._waiting.append(work)
        if len(self._waiting) == 1:
            asyncio.get_running_loop().call_soon(self._go_on)

    def _go_on(self) -> None:
        try:
            next(self._waiting[0])
        except StopIteration:
            self._waiting.popleft()
        except BaseException:  # the loop tells of it; the others shall not wait for ever
            self._waiting.popleft()
            raise
        finally:
            if self._waiting:
                asyncio.get_running_loop().call_soon(self._go_on)

"""The one thread on which the student's weights compute, so that the event loop never waits for them."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class ModelThread:
    """Runs functions one after the other on a thread of its own."""

    def __init__(self) -> None:
        """Start with nothing to do."""
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="model")

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Return what the function returns."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, lambda: function(*args, **kwargs))

    def close(self) -> None:
        """Drop what waits; what runs is left to end."""
        self._executor.shutdown(wait=False, cancel_futures=True)

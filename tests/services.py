"""Servers as real processes on loopback, for tests."""

import contextlib
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from opdscope import Client

READY_SECONDS = 120.0


class Server:
    """A server process; a context manager that leaves nothing behind."""

    def __init__(self, module: str, *arguments: str, listen: str = "127.0.0.1:0") -> None:
        """Start it and wait until it listens."""
        command = [sys.executable, "-m", module, "--listen", listen, "--metrics-port", "-1", *arguments]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert self.process.stdout
        line = self.process.stdout.readline()
        assert " listening on " in line, f"{module} did not start: {self.process.wait()}"
        self.address = line.split()[-1]

    def __enter__(self) -> Self:
        """Do nothing: it is running."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Kill it if it still runs."""
        self.kill()
        assert self.process.stdout
        self.process.stdout.close()

    def kill(self) -> None:
        """Kill it with SIGKILL: nothing can be finished or written any more."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """Ask it to end, and return its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


def generator(model: Path | str, *, dtype: str = "float64", listen: str = "127.0.0.1:0") -> Server:
    """Start a generator."""
    return Server("opdscope_generator", "--model", str(model), "--dtype", dtype, listen=listen)


def scorer(model: Path | str, generators: str, state_dir: Path, *, dtype: str = "float64") -> Server:
    """Start a scorer."""
    arguments = ["--model", str(model), "--dtype", dtype, "--generators", generators, "--state-dir", str(state_dir)]
    return Server("opdscope_scorer", *arguments)


@contextlib.contextmanager
def ready_client(server: Server) -> Iterator[Client]:
    """Connect to a scorer and wait until it has loaded its student."""
    with Client(server.address) as client:
        client.wait_ready(READY_SECONDS)
        yield client

"""One server as a child process on loopback."""

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

from opdscope._errors import LocalServiceError

_SHOWN_LOG_LINES = 12


class ServerProcess:
    """A server that prints `NAME listening on HOST:PORT` on stdout and logs to stderr.

    It has a session of its own, so that Ctrl-C reaches only us, who end it in order.
    """

    def __init__(self, module: str, arguments: list[str], log: Path) -> None:
        self.name = module.replace("_", "-")
        self._log = log
        self._output = b""
        command = [sys.executable, "-m", "opdscope._child", str(os.getpid()), module, *arguments]
        with log.open("wb") as file:
            self._process = subprocess.Popen(  # noqa: S603 - our own servers
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=file, start_new_session=True
            )

    def address(self, timeout: float) -> str:
        """`HOST:PORT`, as soon as it listens.

        Raises:
            LocalServiceError: if it ends, or does not listen after `timeout` seconds.
        """
        end = time.monotonic() + timeout
        while (found := self._printed_address()) is None:
            if time.monotonic() > end:
                raise LocalServiceError(f"{self.name} does not listen after {timeout:.0f} s{self._log_end()}")
            self._read_output()
        return found

    def check_running(self) -> None:
        """Do nothing if it runs.

        Raises:
            LocalServiceError: with the end of its log if it does not.
        """
        if (status := self._process.poll()) is not None:
            raise LocalServiceError(f"{self.name} ended with status {status}{self._log_end()}")

    def terminate(self) -> None:
        """Ask it to end."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)

    def wait_or_kill(self, timeout: float) -> None:
        """Wait for its end; after `timeout` seconds, end it by force."""
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        finally:
            if self._process.stdout:
                self._process.stdout.close()

    def _printed_address(self) -> str | None:
        for line in self._output.decode(errors="replace").splitlines(keepends=True):
            if line.startswith(f"{self.name} listening on ") and line.endswith("\n"):
                return line.split()[-1]
        return None

    def _read_output(self) -> None:
        assert self._process.stdout is not None
        readable, _, _ = select.select([self._process.stdout], [], [], 0.2)
        data = os.read(self._process.stdout.fileno(), 4096) if readable else b""
        self._output += data
        if readable and not data:  # it has closed its output, so it is ending
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(1.0)
            self.check_running()

    def _log_end(self) -> str:
        """What it said last: its own error line if there is one, else the last lines of the log."""
        lines = [line for line in self._log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        own = [index for index, line in enumerate(lines) if line.startswith(f"{self.name}: ")]
        shown = lines[own[-1] :] if own else lines
        return "".join(f"\n  {line}" for line in shown[-_SHOWN_LOG_LINES:])

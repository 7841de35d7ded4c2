"""Generators and scorer as real processes on loopback, for `--local` and for notebooks."""

import contextlib
import importlib.util
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from opdscope._client import Client
from opdscope._errors import LocalServiceError, UnavailableError
from opdscope._runfile import RunFile
from opdscope._server_process import ServerProcess

_LISTEN_SECONDS = 180.0  # importing torch takes long on a cold disk
_READY_SECONDS = 1800.0  # so does converting a model
_GRACE_SECONDS = 5  # what is under way is kept or comes again, so nobody waits for it
_STOP_SECONDS = 15.0
_LOOPBACK = ("--listen", "127.0.0.1:0", "--metrics-port", "-1", "--grace-seconds", str(_GRACE_SECONDS))
_NEEDED = ("torch", "transformers", "scipy", "structlog", "prometheus_client", "grpc_reflection")

Say = Callable[[str], None]


@contextlib.contextmanager
def local_services(
    run_file: RunFile | None = None, *, state_dir: Path | None = None, say: Say = lambda _: None
) -> Iterator[Client]:
    """Start the servers that a run needs, and end them with the block.

    Args:
        run_file: Names the student and the number of generators. Without it there is only a scorer for evidence.
        state_dir: Where the scorer keeps runs, and the servers their logs; a run that is in it goes on.
            Default: a temporary directory.
        say: Gets a short sentence whenever something else is being done.

    Raises:
        LocalServiceError: if a server does not start; the error holds the end of its log.
    """
    _check_installed()
    with contextlib.ExitStack() as stack:
        if state_dir is None:
            state_dir = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="opdscope-")))
        state_dir.mkdir(parents=True, exist_ok=True)
        servers: list[ServerProcess] = []
        stack.callback(_stop, servers)
        address = _start(run_file, state_dir, servers, say)
        client = stack.enter_context(Client(address))
        if run_file is not None:
            # What needs no student to be found wrong is told before it is loaded.
            client.validate_run(run_file)
        _wait_ready(client, servers)
        yield client


def _check_installed() -> None:
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise LocalServiceError(
            f"the servers are not installed ({missing[0]} is missing): pip install 'opdscope[serve]'"
        )


def _start(run_file: RunFile | None, state_dir: Path, servers: list[ServerProcess], say: Say) -> str:
    """Start everything at once, appending to `servers`; returns the scorer's address."""
    arguments: list[str] = []
    if run_file is not None:
        if run_file.student is None:
            raise LocalServiceError("the run file names no student; --local needs `student: {model: …}`")
        model = ["--model", run_file.student.model, "--dtype", run_file.student.dtype]
        for number in range(run_file.local.generators):
            say(f"starting generator {number + 1} of {run_file.local.generators}")
            log = state_dir / f"generator-{number}.log"
            servers.append(ServerProcess("opdscope_generator", [*_LOOPBACK, *model], log))
        generators = ",".join(server.address(_LISTEN_SECONDS) for server in servers)
        arguments = [*model, "--generators", generators]
    say("starting the scorer")
    scorer = ServerProcess(
        "opdscope_scorer", [*_LOOPBACK, "--state-dir", str(state_dir), *arguments], state_dir / "scorer.log"
    )
    servers.append(scorer)
    address = scorer.address(_LISTEN_SECONDS)
    if run_file is not None and run_file.student is not None:
        say(f"loading the student {run_file.student.model}")
    return address


def _wait_ready(client: Client, servers: list[ServerProcess]) -> None:
    end = time.monotonic() + _READY_SECONDS
    while True:
        for server in servers:
            server.check_running()
        try:
            return client.wait_ready(timeout=0.5)
        except UnavailableError:
            if time.monotonic() > end:
                raise


def _stop(servers: list[ServerProcess]) -> None:
    """The scorer first: it is the one who calls the others."""
    for server in reversed(servers):
        server.terminate()
    for server in reversed(servers):
        server.wait_or_kill(_STOP_SECONDS)

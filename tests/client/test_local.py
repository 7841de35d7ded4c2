"""Servers as processes. The standard library's web server stands for one of ours: it starts faster."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from opdscope import LocalServiceError
from opdscope._server_process import ServerProcess

# Prints the line by which a server says that it listens, waits, and ends orderly when it is told to.
SERVER = """\
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(print("ended in order", file=sys.stderr)))
print("tiny-server listening on 127.0.0.1:4711", flush=True)
time.sleep(600)
"""


@pytest.fixture
def server_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a server module, which child processes can import."""
    (tmp_path / "tiny_server.py").write_text(SERVER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path


def test_a_server_is_started_and_ended(server_path: Path) -> None:
    """The address comes from its output; it is asked to end and ends in order."""
    server = ServerProcess("tiny_server", [], server_path / "log")
    assert server.address(timeout=60) == "127.0.0.1:4711"
    server.check_running()
    server.terminate()
    server.wait_or_kill(timeout=60)
    assert "ended in order" in (server_path / "log").read_text()
    with pytest.raises(LocalServiceError, match="tiny-server ended with status 0"):
        server.check_running()


def test_a_server_that_does_not_end_is_ended_by_force(server_path: Path) -> None:
    """Nobody is left behind."""
    stubborn = SERVER.replace("lambda *_: sys.exit(print", "lambda *_: (print").replace("))\n", "))\n", 1)
    (server_path / "tiny_server.py").write_text(stubborn)
    server = ServerProcess("tiny_server", [], server_path / "log")
    server.address(timeout=60)
    server.terminate()
    server.wait_or_kill(timeout=0.1)
    with pytest.raises(LocalServiceError, match="status -9"):
        server.check_running()


def test_a_server_that_fails_says_why(server_path: Path) -> None:
    """Its own message is shown, without the log around it."""
    code = (
        'import sys\nprint("noise", file=sys.stderr)\nsys.exit("tiny-server: cannot start: no model at some/folder")\n'
    )
    (server_path / "tiny_server.py").write_text(code)
    server = ServerProcess("tiny_server", [], server_path / "log")
    with pytest.raises(LocalServiceError) as caught:
        server.address(timeout=60)
    server.wait_or_kill(timeout=60)
    expected = "tiny-server ended with status 1\n  tiny-server: cannot start: no model at some/folder"
    assert str(caught.value) == expected


def test_a_server_that_never_listens_is_given_up(server_path: Path) -> None:
    """With the end of its log."""
    (server_path / "tiny_server.py").write_text("import time\ntime.sleep(600)\n")
    server = ServerProcess("tiny_server", [], server_path / "log")
    with pytest.raises(LocalServiceError, match="does not listen"):
        server.address(timeout=0.1)
    server.terminate()
    server.wait_or_kill(timeout=60)


def test_a_server_ends_with_a_parent_that_is_killed(server_path: Path) -> None:
    """Also if the parent has no chance to end it."""
    code = (
        "import pathlib, sys, time; from opdscope._server_process import ServerProcess\n"
        "server = ServerProcess('tiny_server', [], pathlib.Path(sys.argv[1]))\n"
        "server.address(60); print(server._process.pid, flush=True); time.sleep(600)"
    )
    arguments = [sys.executable, "-c", code, str(server_path / "log")]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        parent.send_signal(signal.SIGKILL)
    while _runs(child):
        time.sleep(0.1)
    assert "ended in order" in (server_path / "log").read_text()


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False

"""Runs a server module that ends with its parent: `python -m opdscope._child PARENT_PID MODULE ARGUMENTS…`.

The parent ends its servers itself, unless it is killed; then nobody else would.
"""

import os
import runpy
import signal
import sys
import threading
import time

_POLL_SECONDS = 1.0


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_POLL_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)


def main() -> None:
    """Watch the parent and become the module."""
    parent, module = int(sys.argv[1]), sys.argv[2]
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    sys.argv = [module, *sys.argv[3:]]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()

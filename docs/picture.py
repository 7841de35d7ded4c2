"""Makes docs/images/demo.svg from what the demo prints: `make demo | python docs/picture.py`."""

import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

TARGET = Path(__file__).parent / "images" / "demo.svg"


def main() -> None:
    """Write the picture."""
    with Path("/dev/null").open("w", encoding="utf-8") as nowhere:
        console = Console(record=True, width=96, file=nowhere, force_terminal=True)
        console.print(Text.from_ansi(sys.stdin.read().rstrip()))
        console.save_svg(str(TARGET), title="make demo")


if __name__ == "__main__":
    main()

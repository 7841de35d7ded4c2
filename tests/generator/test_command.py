import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--model", "/nowhere"], 1, "opdscope-generator: cannot start: no model at /nowhere"),
        ([], 2, "opdscope-generator: model"),
        (["--model", "x", "--max-rows", "0"], 2, "opdscope-generator: --max-rows"),
        (["--model", "x", "--engine", "other"], 2, "opdscope-generator: --engine"),
    ],
)
def test_bad_settings_end_the_command_with_a_message(
    tmp_path: Path, arguments: list[str], code: int, message: str
) -> None:
    """Nothing but the exit code and one clear line tells what is wrong."""
    command = [sys.executable, "-m", "opdscope_generator", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, timeout=120)
    assert code == result.returncode
    assert message in result.stderr
    assert "Traceback" not in result.stderr

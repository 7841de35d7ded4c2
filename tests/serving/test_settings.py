"""Settings come from flags, environment and file; what is unknown or wrong is refused by name."""

from pathlib import Path

import pytest
from opdscope_serving.settings import ServerSettings, load_settings
from pydantic import Field


class _Settings(ServerSettings):
    """A server."""

    size: int = Field(3, ge=1, description="a number")


def _load(*argv: str, environ: dict[str, str] | None = None) -> _Settings:
    return load_settings(_Settings, prog="prog", env_prefix="OPDSCOPE_TEST_", argv=argv, environ=environ or {})


def test_flags_win_over_environment_over_file_over_defaults(tmp_path: Path) -> None:
    """Each later source is weaker."""
    file = tmp_path / "settings.yaml"
    file.write_text("size: 5\nlog-level: debug\nmetrics_port: 9000\n")
    settings = _load("--config", str(file), "--size", "7", environ={"OPDSCOPE_TEST_METRICS_PORT": "9001"})
    assert (settings.size, settings.metrics_port, settings.log_level, settings.reflection) == (7, 9001, "debug", True)


def test_the_file_can_be_named_in_the_environment(tmp_path: Path) -> None:
    """As containers do."""
    file = tmp_path / "settings.yaml"
    file.write_text("size: 5\n")
    assert _load(environ={"OPDSCOPE_TEST_CONFIG": str(file)}).size == 5


@pytest.mark.parametrize(
    ("argv", "environ", "message"),
    [
        (["--size", "0"], {}, "--size: Input should be greater than or equal to 1, not '0'"),
        (["--listen", "here"], {}, "--listen: must be HOST:PORT with a port from 0 to 65535, not 'here'"),
        (["--listen", "localhost:70000"], {}, "--listen: must be HOST:PORT"),
        ([], {"OPDSCOPE_TEST_SIZE": "x"}, "OPDSCOPE_TEST_SIZE: Input should be a valid integer"),
        ([], {"OPDSCOPE_TEST_SISE": "4"}, "OPDSCOPE_TEST_SISE: unknown setting; known: OPDSCOPE_TEST_CONFIG"),
        (["--config", "missing.yaml"], {}, "--config missing.yaml: "),
        (["--sise", "4"], {}, "unrecognized arguments: --sise 4"),
    ],
)
def test_wrong_settings_are_refused_by_name(
    argv: list[str], environ: dict[str, str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the name as the user wrote it, the value and what is accepted; exit code 2."""
    with pytest.raises(SystemExit) as raised:
        _load(*argv, environ=environ)
    assert raised.value.code == 2
    assert message in capsys.readouterr().err


def test_unknown_settings_in_the_file_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A typing error must not be ignored."""
    file = tmp_path / "settings.yaml"
    file.write_text("sise: 5\n")
    with pytest.raises(SystemExit):
        _load("--config", str(file))
    assert "sise in the settings file: unknown setting" in capsys.readouterr().err


def test_help_describes_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    """With its default."""
    with pytest.raises(SystemExit):
        _load("--help")
    out = capsys.readouterr().out
    assert all(f"--{name.replace('_', '-')}" in out for name in _Settings.model_fields)
    assert "a number (default: 3)" in " ".join(out.split())

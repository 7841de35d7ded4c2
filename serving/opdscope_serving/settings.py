"""Settings of a server: every one by flag, environment variable or file, in this order of precedence.

A setting that is not known is an error wherever it stands.
"""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

# Kubernetes gives every pod variables such as OPDSCOPE_SCORER_PORT=tcp://… for a Service called opdscope-scorer.
_KUBERNETES_HINT = "; if Kubernetes set it for a Service, put `enableServiceLinks: false` into the pod's specification"


class ServerSettings(BaseModel):
    """Settings that both servers have."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    listen: str = Field("127.0.0.1:0", description="address to listen on, HOST:PORT; port 0 takes a free one")
    metrics_port: int = Field(0, ge=-1, le=65535, description="port of /metrics; 0 takes a free one, -1 turns it off")
    log_level: str = Field("info", pattern="^(debug|info|warning|error)$", description="debug, info, warning or error")
    log_json: bool | None = Field(None, description="JSON log lines; by default where stderr is no terminal")
    grace_seconds: float = Field(20.0, ge=0, description="time that calls under way get when the server must stop")
    reflection: bool = Field(default=True, description="serve gRPC reflection")
    max_message_mb: int = Field(32, ge=1, le=1024, description="largest message, in MiB")

    @field_validator("listen")
    @classmethod
    def _check_listen(cls, value: str) -> str:
        host, colon, port = value.rpartition(":")
        if not (host and colon and port.isdigit() and int(port) <= 65535):
            raise ValueError("must be HOST:PORT with a port from 0 to 65535")
        return value


S = TypeVar("S", bound=ServerSettings)


def load_settings(
    kind: type[S],
    *,
    prog: str,
    env_prefix: str,
    argv: Sequence[str] | None = None,
    environ: Mapping[str, str] | None = None,
) -> S:
    """Return the settings that flags, environment and file together give; exit with 2 and a message if they are wrong.

    Args:
        kind: The settings' class; every field needs a description.
        prog: Name of the program, for help and messages.
        env_prefix: Start of the environment variables' names, for example `OPDSCOPE_SCORER_`.
        argv: The arguments, without the program's name; by default those of the process.
        environ: The environment; by default that of the process.
    """
    flags = vars(_parser(kind, prog, env_prefix).parse_args(argv))
    variables = os.environ if environ is None else environ
    env_names = {f"{env_prefix}{name.upper()}": name for name in [*kind.model_fields, "config"]}
    for variable in variables:
        if variable.startswith(env_prefix) and variable not in env_names:
            _fail(prog, f"{variable}: unknown setting; known: {', '.join(sorted(env_names))}{_KUBERNETES_HINT}")
    from_env = {name: variables[variable] for variable, name in env_names.items() if variable in variables}
    from_file = _read_file(prog, flags.pop("config", None) or from_env.pop("config", None))
    try:
        return kind.model_validate({**from_file, **from_env, **flags})
    except ValidationError as error:
        _fail(prog, "\n".join(_describe(problem, from_env, flags, env_prefix) for problem in error.errors()))


def _parser(kind: type[ServerSettings], prog: str, env_prefix: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description=kind.__doc__,
        epilog=f"Every setting can also be given as an environment variable ({env_prefix}LISTEN=…) or in the file.",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    parser.add_argument("--config", metavar="FILE", help="YAML file with settings")
    for name, field in kind.model_fields.items():
        default = "" if field.default is None or field.is_required() else f" (default: {field.default})"
        parser.add_argument(f"--{name.replace('_', '-')}", metavar="VALUE", help=f"{field.description}{default}")
    return parser


def _read_file(prog: str, path: str | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
    except (OSError, yaml.YAMLError) as error:
        _fail(prog, f"--config {path}: {error}")
    if not isinstance(content, dict):
        _fail(prog, f"--config {path}: must hold settings as `name: value`, not {type(content).__name__}")
    return {str(name).replace("-", "_"): value for name, value in content.items()}


def _describe(problem: Any, from_env: Mapping[str, str], flags: Mapping[str, str], env_prefix: str) -> str:  # noqa: ANN401
    name = str(problem["loc"][0]) if problem["loc"] else ""
    place = f"--{name.replace('_', '-')}"
    if name not in flags:
        place = f"{env_prefix}{name.upper()}" if name in from_env else f"{name} in the settings file"
    if problem["type"] == "extra_forbidden":
        return f"{place}: unknown setting"
    return f"{place}: {problem['msg'].removeprefix('Value error, ')}, not {problem['input']!r}"


def _fail(prog: str, message: str) -> NoReturn:
    for line in message.splitlines():
        sys.stderr.write(f"{prog}: {line}\n")
    raise SystemExit(2)

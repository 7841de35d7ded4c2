"""Structured logs: readable on a terminal, JSON lines elsewhere; always on stderr."""

import logging
import sys
from typing import Any

import structlog


def configure_logging(*, level: str = "info", json: bool | None = None) -> None:
    """Set up structlog and the standard library's logging for a server process.

    Args:
        level: Least severe level that is written: `debug`, `info`, `warning` or `error`.
        json: Whether to write JSON lines; by default only where stderr is no terminal.
    """
    as_json = not sys.stderr.isatty() if json is None else json
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    render: list[Any] = (
        [structlog.processors.dict_tracebacks, structlog.processors.JSONRenderer()]
        if as_json
        else [structlog.dev.ConsoleRenderer()]
    )
    structlog.configure(
        processors=[*shared, *render],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared, processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *render]
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    # Libraries speak only when something is wrong.
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)

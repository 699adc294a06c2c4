"""The program's own log: readable on a terminal, JSON lines elsewhere, always on standard error."""

from __future__ import annotations

import sys

import structlog


def configure(**bound: object) -> None:
    """Set the log up; what is `bound` stands on each line. Tracebacks carry no local variables."""
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if sys.stderr.isatty():
        plain = structlog.dev.plain_traceback
        ending: list[structlog.typing.Processor] = [
            structlog.dev.ConsoleRenderer(exception_formatter=plain)
        ]
    else:
        frames = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
        ending = [
            structlog.processors.ExceptionRenderer(frames),
            structlog.processors.JSONRenderer(),
        ]
    structlog.configure(
        processors=[*shared, *ending],
        wrapper_class=structlog.make_filtering_bound_logger("info"),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(**bound)

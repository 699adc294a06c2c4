# SPDX-License-Identifier: GPL-2.0-only
"""The program's log on standard error: text on a terminal, JSON lines elsewhere.

Records of libraries (Python's logging) use the same format. A failed write never raises: a full disk
must not end a run.
"""

from __future__ import annotations

import logging
import os
import sys
from typing import TYPE_CHECKING, Any, Final

import structlog

if TYPE_CHECKING:
    from collections.abc import Mapping

_NOT_LOGGED: Final = {
    *("event", "level", "time", "monotonic", "boot_id", "evidence")  # log lines have their own
}


def configure(*, program: str, run: str | None = None, boot: str | None = None, **bound: object) -> None:
    """Configure logging; each line of any thread carries program, run and boot, if known.

    Tracebacks omit local variables.
    """
    foreign: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[*foreign, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger("info"),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = _StandardError({"program": program, **bound})
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                handler.bind,
                *_ending(terminal=sys.stderr.isatty()),
            ],
            foreign_pre_chain=[*foreign, structlog.stdlib.add_logger_name],
        )
    )
    root = logging.getLogger()
    for other in _handlers():
        root.removeHandler(other)
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    bind_log(run=run, boot=boot)


def bind_log(*, run: str | None = None, boot: str | None = None) -> None:
    """Add run and boot, if given, to each line from now on."""
    for handler in _handlers():
        handler.bound |= {name: value for name, value in (("run", run), ("boot", boot)) if value}


def log_event(line: Mapping[str, Any]) -> None:
    """Log a warning or error of the journal; pass this function to a journal as `on_line`.

    The evidence stays in the journal, under the same `seq`.
    """
    fields = {name: value for name, value in line.items() if name not in _NOT_LOGGED}
    logger = structlog.get_logger()
    if line["level"] == "error":
        logger.error(line["event"], **fields)
    elif line["level"] == "warning":
        logger.warning(line["event"], **fields)


def log_crash(program: str, error: BaseException) -> None:
    """Log an unexpected exception with its traceback; configure logging first if necessary."""
    if not _handlers():
        configure(program=program)
    structlog.get_logger().critical(
        "program.crashed", error=f"{type(error).__name__}: {error}", exc_info=error
    )


def _ending(*, terminal: bool) -> list[structlog.typing.Processor]:
    """Return the processors that render a line."""
    if terminal:
        plain = structlog.dev.plain_traceback
        return [structlog.dev.ConsoleRenderer(exception_formatter=plain)]
    frames = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
    return [structlog.processors.ExceptionRenderer(frames), structlog.processors.JSONRenderer()]


def _handlers() -> list[_StandardError]:
    return [each for each in logging.getLogger().handlers if isinstance(each, _StandardError)]


class _StandardError(logging.Handler):
    """Writes lines past Python's buffer, because a failed flush at exit changes the exit code."""

    def __init__(self, bound: dict[str, object]) -> None:
        super().__init__()
        self.bound = bound
        self._lost = 0
        self._cut = False

    def bind(
        self, _logger: structlog.typing.WrappedLogger, _method: str, line: structlog.typing.EventDict
    ) -> structlog.typing.EventDict:
        """Add the bound values to a line."""
        return {**self.bound, **line}

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = self.format(record)
        except Exception:  # noqa: BLE001 - as all handlers do: a formatting error must not propagate
            self.handleError(record)
            return
        if not self._write(text):
            self._lost += 1
        elif self._lost:
            lost, self._lost = self._lost, 0
            structlog.get_logger().warning("log.lost", lines=lost)

    def _write(self, text: str) -> bool:
        # Terminate a line that an earlier failure cut short.
        data = ("\n" if self._cut else "").encode() + text.encode(errors="backslashreplace") + b"\n"
        try:
            descriptor = sys.stderr.fileno()
        except (AttributeError, OSError, ValueError):
            # Standard error is closed, or replaced by an object without a descriptor.
            return self._write_text(data.decode())
        try:
            while data:
                written = os.write(descriptor, data)
                self._cut = data[written - 1 : written] != b"\n"
                data = data[written:]
        except OSError:
            return False
        return True

    @staticmethod
    def _write_text(text: str) -> bool:
        try:
            sys.stderr.write(text)
        except (AttributeError, OSError, ValueError):
            return False
        return True

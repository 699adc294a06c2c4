"""What pytest says before the first test, and what it is told by whoever runs it."""

from __future__ import annotations

import signal

from tests.lab_support import MODULELESS_KERNEL, QUICK_KERNEL


def pytest_report_header() -> str | None:
    """Say what is left out for want of a kernel, and how to get that kernel."""
    if MODULELESS_KERNEL is not None:
        return None
    return (
        f"left out: kernels without modules (the lab boots {QUICK_KERNEL} instead); "
        f"'dax-soak lab --kernel build:6.12 --duration 20s' builds one"
    )


def pytest_configure() -> None:
    """Hear Ctrl-C: a shell that runs this in the background has it ignored, and all that it starts."""
    signal.signal(signal.SIGINT, signal.default_int_handler)

# SPDX-License-Identifier: GPL-2.0-only
"""The machine under test: what `dax-soak check` finds, and what a run changes and restores."""

# SPDX-License-Identifier: GPL-2.0-only
"""The journal: what happened in a run, line by line, on disk."""

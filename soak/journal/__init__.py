# SPDX-License-Identifier: GPL-2.0-only
"""The journal: the events of a run as JSON lines on disk."""

# SPDX-License-Identifier: GPL-2.0-only
"""Processes: how one is forked, limited, watched, and heard by systemd."""

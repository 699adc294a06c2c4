# SPDX-License-Identifier: GPL-2.0-only
"""Hooks of a run: called at its start, at each beat, at each sample and at its end."""

# SPDX-License-Identifier: GPL-2.0-only
"""Stalls, late wake-ups and early truncates: judgement, probes and response."""

# SPDX-License-Identifier: GPL-2.0-only
"""Detectors: each reads the ledger or the kernel, judges, and reports findings."""

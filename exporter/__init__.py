# SPDX-License-Identifier: GPL-2.0-only
"""Serves a run's ledger to Prometheus: a process of its own, without privileges."""

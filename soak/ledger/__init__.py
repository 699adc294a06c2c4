# SPDX-License-Identifier: GPL-2.0-only
"""The ledger: counters and states of a run in shared memory."""

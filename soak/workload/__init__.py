# SPDX-License-Identifier: GPL-2.0-only
"""The workload: seeded choices, operations, and the loop that records them in the ledger."""

# SPDX-License-Identifier: GPL-2.0-only
"""What workers do: seeded choices, the operations, and the loop that notes them in the ledger."""

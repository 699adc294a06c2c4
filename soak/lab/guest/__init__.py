# SPDX-License-Identifier: GPL-2.0-only
"""The lab's guest: its first process, and what it prepares for a soak."""

# SPDX-License-Identifier: GPL-2.0-only
"""The lab's guest: its first process, which prepares the machine for a soak."""

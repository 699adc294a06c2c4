# SPDX-License-Identifier: GPL-2.0-only
"""Faults of the soak's own making, by which each detector is seen to work."""

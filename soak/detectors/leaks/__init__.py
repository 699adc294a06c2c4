# SPDX-License-Identifier: GPL-2.0-only
"""Leaked page references: measured, swept, and recycled."""

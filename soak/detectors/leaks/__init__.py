# SPDX-License-Identifier: GPL-2.0-only
"""Leaked page references: measurement, sweeps and recycling."""

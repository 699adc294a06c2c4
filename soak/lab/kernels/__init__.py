# SPDX-License-Identifier: GPL-2.0-only
"""Kernels that the lab boots: found, fetched, or built."""

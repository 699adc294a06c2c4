# SPDX-License-Identifier: GPL-2.0-only
"""Finds, fetches and builds the kernels that the lab boots."""

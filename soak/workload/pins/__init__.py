# SPDX-License-Identifier: GPL-2.0-only
"""The ways to pin pages."""

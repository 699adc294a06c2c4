# SPDX-License-Identifier: GPL-2.0-only
"""Kernel interfaces: numbers, structures and calls. Nothing here knows what the project is for."""

# SPDX-License-Identifier: GPL-2.0-only
"""The root of the lab's guest."""

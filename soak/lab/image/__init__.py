# SPDX-License-Identifier: GPL-2.0-only
"""Makes the root of the lab's guest."""

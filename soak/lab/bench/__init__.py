# SPDX-License-Identifier: GPL-2.0-only
"""How fast the soak is, measured in ratios: its own loops against others that do the same work."""

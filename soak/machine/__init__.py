# SPDX-License-Identifier: GPL-2.0-only
"""What a machine offers to a soak, and what of it must not be touched, and what to do about it."""

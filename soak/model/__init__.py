# SPDX-License-Identifier: GPL-2.0-only
"""What a kernel owes: the words, the expectations, the known issues."""

# SPDX-License-Identifier: GPL-2.0-only
"""One run, from its assembly to its last journal line."""

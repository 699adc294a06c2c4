# SPDX-License-Identifier: GPL-2.0-only
"""One soak, from its assembly to its last line in the journal."""

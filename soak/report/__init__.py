# SPDX-License-Identifier: GPL-2.0-only
"""What a run is told as, once it has ended."""

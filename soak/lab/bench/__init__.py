# SPDX-License-Identifier: GPL-2.0-only
"""The benchmark: speed of the soak's loops relative to reference loops with the same work."""

# SPDX-License-Identifier: GPL-2.0-only
"""The live view of a run."""

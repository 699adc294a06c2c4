# SPDX-License-Identifier: GPL-2.0-only
"""What a worker of each role does, an operation at a time."""

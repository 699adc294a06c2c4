# SPDX-License-Identifier: GPL-2.0-only
"""The lab's host: it boots the machine, watches it, and judges."""

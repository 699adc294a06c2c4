# SPDX-License-Identifier: GPL-2.0-only
"""Safe access to files and directories that other users or programs may control."""

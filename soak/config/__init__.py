# SPDX-License-Identifier: GPL-2.0-only
"""The configuration file and the command line."""

# SPDX-License-Identifier: GPL-2.0-only
"""Reports of runs, tables of the program, and the live view."""

# SPDX-License-Identifier: GPL-2.0-only
"""Files and directories that others may have touched: opened with care, read within bounds."""

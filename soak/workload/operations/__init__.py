# SPDX-License-Identifier: GPL-2.0-only
"""Operations on files under test, one file for each kind, and their table."""

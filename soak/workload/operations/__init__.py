# SPDX-License-Identifier: GPL-2.0-only
"""Operations on files under test, one module for each kind, and their table."""

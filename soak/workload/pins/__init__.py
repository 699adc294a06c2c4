# SPDX-License-Identifier: GPL-2.0-only
"""Long-term and short pins of pages."""

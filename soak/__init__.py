# SPDX-License-Identifier: GPL-2.0-only
"""dax-soak: keeps asking a real kernel to keep its promises about DMA and DAX."""

__version__ = "0.1.0"

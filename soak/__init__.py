# SPDX-License-Identifier: GPL-2.0-only
"""dax-soak continuously tests a real kernel's DMA and DAX guarantees."""

__version__ = "0.1.0"

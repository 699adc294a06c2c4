# SPDX-License-Identifier: GPL-2.0-only
"""The lab: a virtual machine with emulated hardware, and the kernels and guest root that it boots."""

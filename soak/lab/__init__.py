# SPDX-License-Identifier: GPL-2.0-only
"""The virtual machine that stands in for hardware: kernels, guest root, QEMU, guest set-up."""

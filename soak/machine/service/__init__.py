# SPDX-License-Identifier: GPL-2.0-only
"""The soak as a systemd service: the units that `dax-soak install` writes."""

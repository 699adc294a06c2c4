# SPDX-License-Identifier: GPL-2.0-only
"""The soak as a service: what it tells systemd, and the units that `dax-soak install` writes."""

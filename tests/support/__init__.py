# SPDX-License-Identifier: GPL-2.0-only
"""What tests of several rooms share."""

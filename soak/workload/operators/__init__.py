# SPDX-License-Identifier: GPL-2.0-only
"""The operators: one class for each role, with the calls that its workers run."""

# SPDX-License-Identifier: GPL-2.0-only
"""Programs that run in the guest, as files that `tests.boots.harness.script` sends there."""

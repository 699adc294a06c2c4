# SPDX-License-Identifier: GPL-2.0-only
"""What goes along with a run: called at its start, at each beat, and at its end."""

# SPDX-License-Identifier: GPL-2.0-only
"""What a user asks for: the configuration file and the options of a command."""

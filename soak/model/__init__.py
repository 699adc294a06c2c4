# SPDX-License-Identifier: GPL-2.0-only
"""The domain model: vocabulary, expectations, known issues and exit codes."""

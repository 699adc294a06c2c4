"""Processes: how one is forked, limited, watched, and heard by systemd."""

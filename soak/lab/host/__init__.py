"""The lab's host: it boots the machine, watches it, and judges."""

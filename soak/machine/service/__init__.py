"""The soak as a service: what it tells systemd, and the units that `dax-soak install` writes."""

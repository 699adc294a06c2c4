# SPDX-License-Identifier: GPL-2.0-only
"""How a test boots a guest, waits for it, and reads what came out.

- `script` runs a program in the guest and returns the facts that it reports; `in_guest` and `guest_run`
  are what such a program imports there.
- `lab` soaks in the lab as a user does; `scrape`, `evidence` and `nvdimm` read what the run shows.
- `boot` starts and ends the process of both, `run_view` reads a run's files in host and guest.
- `shared_setups` has several tests use one boot, `progress_lines` prints what boots do meanwhile.
"""

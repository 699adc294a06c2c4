# SPDX-License-Identifier: GPL-2.0-only
"""Which network interfaces are in use, asked over rtnetlink (rtnetlink(7)).

pyroute2 is imported when it is asked: where nothing has a network interface, it would cost seconds.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_RTN_UNICAST: Final = 1  # include/uapi/linux/rtnetlink.h
_RT_TABLE_LOCAL: Final = 255
_IFF_UP: Final = 1  # include/uapi/linux/if.h
_FAMILIES: Final = (socket.AF_INET, socket.AF_INET6)


def uses_of_links(names: Iterable[str]) -> dict[str, list[str]]:
    """Say what each interface is used for: the routes that it carries, its addresses if it is up.

    One that is not in this network namespace is left out of the result.

    Raises:
        OSError: the kernel does not answer.
    """
    from pyroute2 import IPRoute  # noqa: PLC0415 - slow, see above
    from pyroute2.netlink.exceptions import NetlinkError  # noqa: PLC0415 - the same

    wanted = set(names)
    try:
        with IPRoute() as route:
            links = {
                link["index"]: link
                for link in route.get_links()
                if link.get_attr("IFLA_IFNAME") in wanted
            }
            uses: dict[int, list[str]] = {index: [] for index in links}
            for family in _FAMILIES:
                for entry in route.get_routes(family=family):
                    for index in _outputs(entry):
                        if index in uses:
                            uses[index].append(f"carries the route {_target(entry)}")
                for address in route.get_addr(family=family):
                    index = address["index"]
                    if index in links and links[index]["flags"] & _IFF_UP:
                        text = f"{address.get_attr('IFA_ADDRESS')}/{address['prefixlen']}"
                        uses[index].append(f"is up with the address {text}")
    except NetlinkError as error:
        raise OSError(error.code, str(error), "netlink") from error
    return {str(link.get_attr("IFLA_IFNAME")): uses[index] for index, link in links.items()}


def _outputs(route: Any) -> Iterator[int]:  # noqa: ANN401 - pyroute2's own message
    """Yield the interfaces that a route leads out of; those that every address brings are none."""
    if route["type"] != _RTN_UNICAST or route["table"] == _RT_TABLE_LOCAL:
        return
    if (index := route.get_attr("RTA_OIF")) is not None:
        yield index
    for hop in route.get_attr("RTA_MULTIPATH") or ():
        yield hop["oif"]


def _target(route: Any) -> str:  # noqa: ANN401 - pyroute2's own message
    address = route.get_attr("RTA_DST")
    return f"{address}/{route['dst_len']}" if address else "default"


def uevents() -> Iterator[dict[str, str]]:
    """Yield what the kernel says of devices and drivers, for ever (lib/kobject_uevent.c).

    The socket is made, bound and read in the thread that asks: read in another, it hangs.

    Raises:
        OSError: the kernel does not let this process listen.
    """
    from pyroute2.netlink.uevent import UeventSocket  # noqa: PLC0415 - slow, see above

    with UeventSocket() as kernel:
        kernel.bind(groups=1)
        while True:
            for message in kernel.get():
                yield {
                    key: value
                    for key, value in message.items()
                    if isinstance(key, str) and isinstance(value, str)
                }

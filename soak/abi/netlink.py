# SPDX-License-Identifier: GPL-2.0-only
"""Uses of network interfaces (rtnetlink(7)), and kernel uevents.

pyroute2 takes seconds to import, so the functions import it on first use.
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
    """Return the uses of each interface: its routes, and its addresses if it is up.

    The result omits interfaces of other network namespaces.

    Raises:
        OSError: netlink failed.
    """
    from pyroute2 import IPRoute  # noqa: PLC0415 - slow, see above
    from pyroute2.netlink.exceptions import NetlinkError  # noqa: PLC0415 - the same

    selected = set(names)
    try:
        with IPRoute() as route:
            links = {
                link["index"]: link
                for link in route.get_links()
                if link.get_attr("IFLA_IFNAME") in selected
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
    """Yield the output interfaces of a unicast route; none for routes of the local table."""
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
    """Yield kernel uevents, without end (lib/kobject_uevent.c).

    The consuming thread creates, binds and reads the socket: reading it from another thread hangs.

    Raises:
        OSError: the process may not listen.
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

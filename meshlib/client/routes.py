"""Who else takes messages, before the application sees them: answers to our requests, parts of files, tasks.

Owns which lane of the inbox a message waits in. Leaves handing over and confirming to :mod:`meshlib.client.mesh`.
"""

from typing import Protocol

from meshlib.client.handles import Message
from meshlib.identity import Did


class Route(Protocol):
    """Takes some of the messages; see :meth:`meshlib.MeshClient.add_route`."""

    def claims(self, sender: Did, payload: object) -> bool:
        """Whether a message is this route's to handle. Asked while it waits; cheap, changes nothing, never raises."""

    async def handle(self, message: Message) -> None:
        """Deal with a message; it is confirmed when this returns.

        Called for one message at a time, in the order of arrival.

        Raises:
            MeshError: not now. It stays in the inbox, and is offered again when the client is next started.
        """


class Routes:
    """Routes by lane. Lane 0 is the application's."""

    def __init__(self) -> None:
        self._routes: list[Route] = []

    def add(self, route: Route) -> None:
        """Add a route behind those there are; its lane is the next one."""
        self._routes.append(route)

    def lane_of(self, sender: Did, payload: object) -> int:
        """The lane a message waits in: that of the first route that claims it."""
        for lane, route in enumerate(self._routes, 1):
            if route.claims(sender, payload):
                return lane
        return 0

"""Display names: resolved at the registry, and remembered for a minute."""

import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence

from meshlib.client.handles import Agent
from meshlib.errors import AgentNotFound, AmbiguousName
from meshlib.identity import Did, parse_did

NAMES_REMEMBERED = 1_000
"""Resolved display names kept, so that a chatty agent does not ask the registry for every message."""
NAME_LIFETIME = 60.0
"""Seconds a resolved name stays valid: a name may move to another agent."""


class Names:
    """Names of other agents.

    Args:
        discover: agents that publish a capability; a name is one, the first of its agent.
    """

    def __init__(self, discover: Callable[[str], Awaitable[Sequence[Agent]]]) -> None:
        self._discover = discover
        self._known: OrderedDict[str, tuple[Did, float]] = OrderedDict()
        """DID, and monotonic time until which it is believed."""

    async def resolve(self, name: str, me: Did) -> Did:
        """The DID behind a name other than ``me``; a DID is returned as it is.

        Raises:
            AgentNotFound, AmbiguousName: no agent, or more than one, has that name.
        """
        if name.startswith("did:"):
            return parse_did(name)
        known = self._known.get(name)
        if known is not None and known[1] > time.monotonic():
            return known[0]
        agents = [agent for agent in await self._discover(name) if agent.did != me]
        named = [agent for agent in agents if agent.capabilities[:1] == (name,)] or agents
        if not named:
            raise AgentNotFound(name)
        if len(named) > 1:
            raise AmbiguousName(name, [agent.did for agent in named])
        self._known[name] = (named[0].did, time.monotonic() + NAME_LIFETIME)
        while len(self._known) > NAMES_REMEMBERED:
            self._known.popitem(last=False)
        return named[0].did

    def by_did(self) -> dict[Did, str]:
        """What was resolved, the other way round."""
        return {did: name for name, (did, _) in self._known.items()}

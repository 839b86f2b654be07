"""Where a session's last request went, and whether its next one had better go there too."""

from __future__ import annotations

from collections import OrderedDict

MOST = 100_000  # sessions


class Sticky:
    """Endpoints of sessions, of the last ``MOST`` that were heard of.

    A session stays while its endpoint has at most ``worth`` tokens under way more than the one that
    the policy would take: what of its conversation is in the cache there is worth so much.
    """

    def __init__(self, worth: float) -> None:
        self.worth = worth
        self._last: OrderedDict[str, str] = OrderedDict()

    def endpoint(self, session: str) -> str | None:
        """Where its last request went; None where that is not known."""
        return self._last.get(session)

    def sent(self, session: str, address: str) -> None:
        """A request of it goes there."""
        self._last[session] = address
        self._last.move_to_end(session)
        if len(self._last) > MOST:
            self._last.popitem(last=False)

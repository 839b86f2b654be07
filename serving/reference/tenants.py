"""What each tenant was served at a replica, as fair policies count it.

The virtual token counter of VTC (Sheng et al., "Fairness in Serving Large Language Models", OSDI
2024, algorithm 2): a prompt's tokens count once it is admitted, generated ones twice as much, both
over the tenant's weight. A tenant of whom nobody waited begins at the least counter of those who
wait, or of who was admitted last if nobody does, so that nobody saves up what it did not ask for.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from lengthwise.serving.reference.request import Request

OUTPUT_WEIGHT = 2  # a generated token, in prompt tokens


class TenantBooks:
    """Counters of one replica; ``of`` is each request's tenant (n,), ``shares`` their weights."""

    def __init__(self, of: Sequence[int], shares: Sequence[float]) -> None:
        self.of, self._shares = of, shares
        self._left = [0] * len(shares)  # tokens of requests that are done
        self._begin = [0.0] * len(shares)
        self.admitted: Request | None = None  # the last request that entered the batch

    def service(self, here: Iterable[Request]) -> list[float]:
        """Tokens over weight of each tenant, (tenants,); ``here`` are the replica's requests."""
        counted = zip(self._begin, self.attained(here), strict=True)
        return [begin + attained for begin, attained in counted]

    def attained(self, here: Iterable[Request]) -> list[float]:
        """The same, without what tenants began with when they came back."""
        tokens = list(self._left)
        for request in here:
            if request.in_batch or request.preemptions:
                tokens[self.of[request.id]] += _tokens(request)
        return [float(each) / share for each, share in zip(tokens, self._shares, strict=True)]

    def arrives(self, id: int, here: Iterable[Request]) -> None:
        """A request comes, and is not among ``here`` yet."""
        mine, waiting = self.of[id], set[int]()
        for request in here:
            if not request.in_batch:
                waiting.add(self.of[request.id])
                if mine in waiting:
                    return
        service = self.service(here)
        if waiting:
            least = min(service[tenant] for tenant in waiting)
        elif self.admitted is not None:
            least = service[self.of[self.admitted.id]]
        else:
            return
        behind = least - service[mine]
        if behind > 0:
            self._begin[mine] += behind

    def finished(self, request: Request) -> None:
        """A request has left with all its tokens."""
        self._left[self.of[request.id]] += _tokens(request)


def _tokens(request: Request) -> int:
    return request.prompt + OUTPUT_WEIGHT * request.generated

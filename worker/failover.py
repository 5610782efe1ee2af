"""When a lease that is gone does not mean that its worker is: after an outage of Redis, or a jump of its clock.

Leases are keys that expire by Redis's clock. Pure: times are in seconds, of this process's monotonic clock unless they
are called Redis's.
"""

from __future__ import annotations

_REFUSED_S = 1.0
"""Callers of a server that hangs for longer may have been told that it is away (store/availability.py)."""
_WITHDRAWN_S, _SLOW_S = 0.5, 5.0


class FailoverHold:
    """Transcript of everything that Redis answers; `holds` says whether what was begun is to be left alone.

    It is for a lease's time: whatever kept us from Redis, or Redis from taking writes, or set its clock on, met the other
    workers, too, and by then those that live have renewed theirs.
    """

    def __init__(self, lease_s: float, poll_s: float) -> None:
        self._lease_s = lease_s
        self._silence_s = max(lease_s / 2, 2 * poll_s)
        self._heard: float | None = None
        self._ahead: float | None = None
        self._server: str | None = None
        self._until = self._forgot_until = 0.0
        self._withdrawn = float("-inf")

    def answered(self, now: float) -> None:
        """Redis took a write from us."""
        silence_s = 0.0 if self._heard is None else now - self._heard
        is_slow = now < self._withdrawn + max(_SLOW_S, 2 * silence_s)  # it does not hang: nothing would ever be begun
        if silence_s > _REFUSED_S and not is_slow:
            self._withdrawn = now + _WITHDRAWN_S
        if self._heard is None:
            self._until = now + self._lease_s / 2  # others may just be coming back, like us
        elif silence_s > self._silence_s:
            self._until = now + self._lease_s
        self._heard = now

    def clock(self, redis_now: float, now: float) -> None:
        """What Redis's clock said just now. Ours does not run while a machine sleeps, and its may be set."""
        ahead = redis_now - now
        if self._ahead is not None and ahead - self._ahead > self._silence_s:
            self._until = now + self._lease_s
        self._ahead = ahead

    def server(self, identity: str | None, now: float) -> None:
        """Which server said that (store/confirm.py). Another one, or one that was started again, may have forgotten leases,
        and even that anything was begun: those who run it have to be given the time to say so."""
        if identity is None:
            return
        if self._server is not None and identity != self._server:
            self._until = max(self._until, now + self._lease_s / 2)
            self._forgot_until = now + self._lease_s / 2
        self._server = identity

    def forgot(self, now: float) -> bool:
        """Whether what seems to wait may run somewhere. What was just rung for does not."""
        return now < self._forgot_until

    def until_withdrawn_s(self, now: float) -> float:
        """How long to begin nothing: a server that hung finds what was refused meanwhile, and right behind it, that it was."""
        is_silent = self._heard is not None and now - self._heard > _REFUSED_S  # and whoever rings says that it is over
        return _WITHDRAWN_S if is_silent else max(0.0, self._withdrawn - now)

    def redis_time(self, now: float) -> float | None:
        """What Redis's clock says now, as far as it was heard."""
        return None if self._ahead is None else now + self._ahead

    def holds(self, now: float) -> bool:
        if self._heard is None or now - self._heard > self._silence_s:  # whatever answers next may end an outage
            return True
        return now < self._until

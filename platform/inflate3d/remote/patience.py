"""How long a fault that may pass is waited for: tries further and further apart, until a budget is used up."""

from __future__ import annotations

import logging
import random
import time

from inflate3d.remote.outcomes import Interrupted, Unreachable

OUTAGE_S = 60.0
_LONGEST_PAUSE_S = 10.0
_chance = random.SystemRandom()  # of its own: the seeded one belongs to the run
_log = logging.getLogger(__name__)


class Patience:
    """Waits between tries, until `outage_s` have passed since the first of those that failed without progress."""

    def __init__(self, place: object, outage_s: float | None) -> None:
        """place: what is tried, as it may be printed. outage_s: default OUTAGE_S."""
        self._place = place
        self.outage_s = OUTAGE_S if outage_s is None else outage_s
        self.failures, self._until = 0, 0.0

    def wait(self, fault: Interrupted, *, progressed: bool = False) -> None:
        """Wait before the next try. Unreachable if the time is up, or would be before the server wants to be asked."""
        now = time.monotonic()
        if progressed or not self.failures:
            self.failures, self._until = 0, now + self.outage_s
        self.failures += 1
        left = self._until - now
        asked_s = fault.retry_after_s
        if left <= 0 or asked_s > left:
            told = f", and asks to be left alone for {asked_s:.0f} s" if asked_s > max(left, 1) else ""
            raise Unreachable(
                f"{self._place}: cannot be reached ({fault}){told}; tried {self.failures} times, for at most "
                f"{self.outage_s:g} s without progress. Run the same again to go on from there"
            ) from fault
        pause = _chance.uniform(0.5, 1.0) * min(0.1 * 2**self.failures, _LONGEST_PAUSE_S)
        pause = min(max(pause, asked_s), left)
        level = logging.WARNING if pause >= 1 else logging.INFO
        _log.log(level, "%s: %s; trying again in %.1f s, for %.0f s at most", self._place, fault, pause, left)
        time.sleep(pause)

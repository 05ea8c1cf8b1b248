"""Agreement: whether all ranks take part in a collective, found out before any of them begins it.

A collective that one rank never enters holds up all the others until the network gives up. The
ranks therefore meet in the store of the process group first, where waiting has an end.
"""

from __future__ import annotations

import zlib
from datetime import timedelta
from typing import Any

FIRST_PATIENCE = timedelta(seconds=20)
"""How long a rank waits for the others the first time: one that does not watch never comes."""

PATIENCE = timedelta(seconds=120)
"""How long it waits for those that came before: they may be busy, but say so when they leave."""

YES = "yes"

_next: dict[tuple[str, int], int] = {}
"""Number of the next agreement among some ranks, as this one counts."""


class Agreement:
    """Rounds in which some ranks agree to do the same thing; it ends for good when one fails."""

    def __init__(self, ranks: list[int]) -> None:
        self.failure = ""
        """Why it ended; empty while it lasts."""
        self._ranks = ranks
        self._rounds = 0
        self._store: Any = None
        self._name = ""

    def reached(self, plan: str) -> bool:
        """Wait for all ranks; whether all came with the same plan.

        Args:
            plan: what is to be done.
        """
        if self.failure:
            return False
        try:
            if self._store is None:
                self._join()
            verdict = self._meet(f"{self._name}/{self._rounds}", plan)
        except RuntimeError as error:  # the store is gone, and who kept it with it
            verdict = f"the ranks cannot be asked: {error}".splitlines()[0]
        if verdict != YES:
            self.leave(verdict)
            return False
        self._rounds += 1
        return True

    def leave(self, why: str) -> None:
        """End it, for all ranks, before the next round."""
        if self.failure:
            return
        self.failure = why
        if self._store is None:
            return
        from torch import distributed as dist

        try:
            said = f"rank {dist.get_rank()} stopped recording"
            self._store.compare_set(f"{self._name}/{self._rounds}/verdict", "", said)
            self._store.set(f"{self._name}/over", "")
        except (RuntimeError, ValueError):  # the process group is gone: nobody waits any more
            pass

    def _join(self) -> None:
        from torch import distributed as dist

        # A connection of its own: what waits on it does not hold up the process group's.
        self._store = dist.distributed_c10d._get_default_store().clone()
        among = f"gradscope/{zlib.crc32(str(self._ranks).encode()):08x}"
        key = (among, dist.get_rank())
        number = _next.get(key, 0)
        while self._store.check([f"{among}/{number}/over"]):  # of an agreement that others left
            number += 1
        _next[key] = number + 1
        self._name = f"{among}/{number}"

    def _meet(self, place: str, plan: str) -> str:
        """What all ranks go by, even if one of them came too late or had another plan."""
        store = self._store
        if store.compare_set(f"{place}/plan", "", plan).decode() != plan:
            return self._settle(place, "the ranks record different tensors or different steps")
        if store.add(f"{place}/came", 1) == len(self._ranks):
            said = self._settle(place, YES)
            if self._rounds:  # all have read what they agreed on in the round before
                for what in ("plan", "came", "verdict"):
                    store.delete_key(f"{self._name}/{self._rounds - 1}/{what}")
            return said
        patience = PATIENCE if self._rounds else FIRST_PATIENCE
        try:
            store.wait([f"{place}/verdict"], patience)
        except RuntimeError:
            seconds = int(patience.total_seconds())
            return self._settle(place, f"not all of {len(self._ranks)} ranks came in {seconds} s")
        verdict: str = store.get(f"{place}/verdict").decode()
        return verdict

    def _settle(self, place: str, verdict: str) -> str:
        """Say it unless somebody said something else before; what holds."""
        said: str = self._store.compare_set(f"{place}/verdict", "", verdict).decode()
        return said

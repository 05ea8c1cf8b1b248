"""Doom: whether a cell is beyond hope, judged once by its gradients."""

from __future__ import annotations

import hashlib
import math

from gradscope.ablation.settings import StopConfig
from gradscope.diagnosis.judge import diagnose
from gradscope.recording.scope import Scope


class Doom:
    """The judgement over one cell, at the share of its way that the grid names."""

    def __init__(self, cell: str, stop: StopConfig | None) -> None:
        self.verdict = ""
        """For which the grid would stop the cell, once it was judged so."""
        self.share_of_way = math.nan
        """How far it was then."""
        self._step = self._steps = 0
        self._stop = stop
        self._is_audited = stop is not None and chance(cell) < stop.audit

    def judge(self, scope: Scope | None, step: int, steps: int | None) -> None:
        """Once, when `step` of `steps` has come so far."""
        stop = self._stop
        if stop is None or scope is None or not steps or step < stop.after * steps:
            return
        self._stop = None
        verdict = diagnose(scope.trace()).verdict.value
        if verdict in stop.verdicts:
            self.verdict, self._step, self._steps = verdict, step, steps
            self.share_of_way = step / steps

    def __bool__(self) -> bool:
        """Whether the cell is to be stopped; doomed cells that are audited are not."""
        return bool(self.verdict) and not self._is_audited

    def __str__(self) -> str:
        return f"{self.verdict} at step {self._step} of {self._steps}"


def chance(cell: str) -> float:
    """A number from 0 to 1 that depends on the id of a cell alone, so that audits can be traced."""
    return int.from_bytes(hashlib.sha256(f"audit/{cell}".encode()).digest()[:6]) / 2**48

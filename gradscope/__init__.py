"""gradscope tells from the gradients why a PyTorch network does not learn."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gradscope.lazy import lazily

if TYPE_CHECKING:
    from gradscope import testing as testing
    from gradscope.ablation.grid import Grid as Grid
    from gradscope.ablation.handle import Run as Run
    from gradscope.ablation.run import run_grid as run_grid
    from gradscope.diagnosis import Diagnosis as Diagnosis
    from gradscope.diagnosis import diagnose as diagnose
    from gradscope.errors import GradscopeError as GradscopeError
    from gradscope.probing import try_remedies as try_remedies
    from gradscope.probing.probe import probe as probe
    from gradscope.recording import Scope as Scope
    from gradscope.report import write_report as write_report
    from gradscope.report.write import figures as figures
    from gradscope.study import Study as Study
    from gradscope.trace import Trace as Trace
    from gradscope.watching import watch as watch

_HOME = {
    "Diagnosis": "gradscope.diagnosis",
    "GradscopeError": "gradscope.errors",
    "Grid": "gradscope.ablation.grid",
    "Run": "gradscope.ablation.handle",
    "Scope": "gradscope.recording",
    "Study": "gradscope.study",
    "Trace": "gradscope.trace",
    "diagnose": "gradscope.diagnosis.judge",
    "figures": "gradscope.report.write",
    "probe": "gradscope.probing",
    "run_grid": "gradscope.ablation.run",
    "testing": "gradscope.testing",
    "try_remedies": "gradscope.probing",
    "watch": "gradscope.watching",
    "write_report": "gradscope.report",
}

__all__ = [
    "Diagnosis",
    "GradscopeError",
    "Grid",
    "Run",
    "Scope",
    "Study",
    "Trace",
    "diagnose",
    "figures",
    "probe",
    "run_grid",
    "testing",
    "try_remedies",
    "watch",
    "write_report",
]


_get = lazily(__name__, _HOME)  # so that ``import gradscope`` stays light


def __getattr__(name: str) -> Any:
    if name != "__version__":
        return _get(name)
    from importlib.metadata import version

    return version("gradscope-torch")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]

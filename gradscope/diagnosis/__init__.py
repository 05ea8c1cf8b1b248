"""From a Trace to findings with a verdict, the evidence and a remedy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gradscope.lazy import lazily

if TYPE_CHECKING:
    from gradscope.diagnosis.changes import Change as Change
    from gradscope.diagnosis.flow import GradientFlow as GradientFlow
    from gradscope.diagnosis.flow import gradient_flow as gradient_flow
    from gradscope.diagnosis.flow import loop_flows as loop_flows
    from gradscope.diagnosis.flow import weight_profile as weight_profile
    from gradscope.diagnosis.judge import diagnose as diagnose
    from gradscope.diagnosis.verdict import Diagnosis as Diagnosis
    from gradscope.diagnosis.verdict import Evidence as Evidence
    from gradscope.diagnosis.verdict import Finding as Finding
    from gradscope.diagnosis.verdict import Severity as Severity
    from gradscope.diagnosis.verdict import Verdict as Verdict

_HOME = {
    "Change": ".changes",
    "Diagnosis": ".verdict",
    "Evidence": ".verdict",
    "Finding": ".verdict",
    "GradientFlow": ".flow",
    "Severity": ".verdict",
    "Verdict": ".verdict",
    "diagnose": ".judge",
    "gradient_flow": ".flow",
    "loop_flows": ".flow",
    "weight_profile": ".flow",
}

__all__ = [
    "Change",
    "Diagnosis",
    "Evidence",
    "Finding",
    "GradientFlow",
    "Severity",
    "Verdict",
    "diagnose",
    "gradient_flow",
    "loop_flows",
    "weight_profile",
]

__getattr__ = lazily(__name__, _HOME)  # what explains findings needs no torch

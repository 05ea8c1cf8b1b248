"""From a Trace to findings with a verdict, the evidence and a remedy."""

from gradscope.diagnosis.diagnose import diagnose
from gradscope.diagnosis.flow import GradientFlow, gradient_flow, loop_flows, weight_profile
from gradscope.diagnosis.verdict import Diagnosis, Evidence, Finding, Severity, Verdict

__all__ = [
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

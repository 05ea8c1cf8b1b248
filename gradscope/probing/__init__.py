"""One look at a network without training it, and what would mend it."""

from gradscope.probing.loss import Loss
from gradscope.probing.outcomes import Remedies
from gradscope.probing.probe import probe
from gradscope.probing.remedies import try_remedies

__all__ = ["Loss", "Remedies", "probe", "try_remedies"]

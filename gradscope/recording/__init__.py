"""watch(): the gradients of any module, recorded while it trains."""

from gradscope.recording.scope import Scope
from gradscope.recording.watching import DEFAULT_EVERY, watch

__all__ = ["DEFAULT_EVERY", "Scope", "watch"]

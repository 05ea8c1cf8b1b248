"""watch(): the gradients of any module, recorded while it trains."""

from gradscope.recording.scope import DEFAULT_EVERY, Scope, watch

__all__ = ["DEFAULT_EVERY", "Scope", "watch"]

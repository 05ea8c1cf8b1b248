"""The recording of gradients while a network trains; `gradscope.watching` begins one."""

from gradscope.recording.scope import Scope

__all__ = ["Scope"]

"""Where people train: one adapter a library, which is imported only by its user."""

from gradscope.integrations.tensorboard import tensorboard

__all__ = ["tensorboard"]

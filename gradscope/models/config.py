"""ModelConfig: which network a grid names, and the initialisation of its weights; without torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from gradscope.errors import ModelError, nearest
from gradscope.factory import load_factory

BUILT_IN = {
    "hw5net": "gradscope.models.hw5net:HW5Net",
    "net3": "gradscope.models.hw5net:Net3",
}
"""Name in a grid -> factory; everything else is named ``package.module:factory``."""

Scheme = Literal["default", "kaiming", "xavier", "orthogonal"]

NAMES = ("default", "kaiming", "kaiming_normal", "orthogonal", "xavier", "xavier_normal")
"""The short names that a grid can write instead of the whole setting."""


class InitConfig(BaseModel):
    """How the weights are drawn before training; biases stay as the layers drew them.

    A plain name stands for the whole: ``kaiming`` for the uniform distribution on ``Conv2d``, as
    the reference study does it, ``kaiming_normal`` for the normal one.

    Example:
        >>> InitConfig.model_validate("xavier_normal")
        InitConfig(scheme='xavier', distribution='normal', layers=('Conv2d',))
    """

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="constants")

    scheme: Scheme = "default"
    """``default`` leaves what the layers drew; ``kaiming``: Var w = 2 / fan_in (1502.01852);
    ``xavier``: Var w = 2 / (fan_in + fan_out) (Glorot & Bengio 2010); ``orthogonal``: 1312.6120,
    which has one distribution, the uniform one."""
    distribution: Literal["uniform", "normal"] = "uniform"
    """Of the same variance."""
    layers: tuple[str, ...] = ("Conv2d",)
    """Class names of the layers whose ``weight`` is drawn anew; a base class covers its heirs."""

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        if value.removesuffix("_uniform") not in NAMES:
            raise ValueError(f"unknown initialisation '{value}'; {nearest(value, NAMES)}")
        scheme, _, distribution = value.partition("_")
        return {"scheme": scheme, "distribution": distribution or "uniform"}

    @model_validator(mode="after")
    def _exists(self) -> InitConfig:
        if self.scheme == "orthogonal" and self.distribution == "normal":
            raise ValueError("orthogonal has no normal distribution; leave distribution out")
        return self


class ModelConfig(BaseModel):
    """Which network, with which arguments and initialisation."""

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="constants")

    name: str
    """A built-in (``hw5net``), ``torchvision.models:resnet18``, or ``package.module:factory``."""
    args: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of the factory."""
    init: InitConfig = InitConfig()
    """A name such as ``kaiming``, or scheme, distribution and layers."""


def spec_of(name: str) -> str:
    """``package.module:factory`` of the model that a grid names; nothing is imported.

    Args:
        name: a built-in, or the spec itself.

    Raises:
        ModelError: there is no such built-in.
    """
    if name in BUILT_IN:
        return BUILT_IN[name]
    if ":" in name:
        return name
    raise ModelError(
        f"unknown model '{name}'; {nearest(name, BUILT_IN)}, or package.module:factory, "
        "for example torchvision.models:resnet18"
    )


def resolve(name: str) -> Callable[..., Any]:
    """The factory that a grid names, imported.

    Args:
        name: a built-in, or ``package.module:factory``.

    Raises:
        ModelError: there is no such built-in, module or factory.
    """
    return load_factory(spec_of(name))

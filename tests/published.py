"""Architectures that others published, as small as they are built, at their own initialisation.

`built(library, name)` makes one with inputs and a loss; `NAMES[library]` are those that are tested.
They are made of what their library holds under a name, with sizes in the place of the published
ones; nothing is loaded.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import gradscope
from gradscope.nested import tensors_in

TINY = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "emb_dim", "embedding_size"), 32),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), 3),
    **dict.fromkeys(("encoder_layers", "decoder_layers"), 3),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), 4),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("intermediate_size", "d_ff", "n_inner", "ffn_dim", "hidden_dim"), 64),
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim", "vocab_size"), 64),
    **dict.fromkeys(("max_position_embeddings", "n_positions"), 64),
    **dict.fromkeys(("num_experts", "num_local_experts"), 4),
    **dict.fromkeys(("d_kv", "head_dim", "patch_size", "attention_window", "block_size"), 8),
    **dict.fromkeys(("num_key_value_heads", "num_experts_per_tok"), 2),
    **dict.fromkeys(("moe_intermediate_size", "word_embed_proj_dim", "image_size"), 32),
    "num_channels": 3,
    "num_random_blocks": 1,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
"""Sizes that the configurations of transformers share, by the names that they have there."""


@dataclass(frozen=True)
class Published:
    """One network with a batch and what its output is compared with."""

    model: nn.Module
    inputs: Any
    targets: Tensor | None
    loss: Callable[[Any], Tensor]

    def call(self) -> Any:
        """The output for the batch."""
        return (
            self.model(**self.inputs) if isinstance(self.inputs, dict) else self.model(self.inputs)
        )


def built(library: str, name: str) -> Published:
    """A network of a library, drawn anew; skips where the library does not hold it."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what others' code says of itself
        return BUILDERS[library](name)


def of_torchvision(name: str) -> Published:
    """A classifier of torchvision on images of 64 pixels, or of the only size that it takes."""
    from torchvision import models

    size, options = 64, {}
    if name.startswith("vit_"):
        size = options["image_size"] = 56 if name == "vit_h_14" else 64
    elif name.startswith("maxvit"):
        size = 224
    elif name == "inception_v3":
        size = 96
    if name in ("googlenet", "inception_v3"):
        options["init_weights"] = True
    return _classifier(models.get_model(name, num_classes=10, **options), size)


def of_timm(name: str) -> Published:
    """A classifier of timm on the smallest images that it takes."""
    timm = pytest.importorskip("timm")
    if not timm.is_model(name):
        pytest.skip(f"this timm has no {name}")
    given = timm.get_pretrained_cfg(name).input_size[-1]
    for size in sorted({64, 96, 128, given}):
        try:
            try:
                model = timm.create_model(name, img_size=size, num_classes=10)
            except TypeError:
                model = timm.create_model(name, num_classes=10)
            with torch.no_grad():
                model.eval()(torch.zeros(1, 3, size, size))
        except (AssertionError, RuntimeError, ValueError):
            if size == given:
                raise
            continue
        torch.manual_seed(0)
        return _classifier(model.train(), size)
    raise AssertionError


def _classifier(model: nn.Module, size: int) -> Published:
    images, classes = torch.randn(4, 3, size, size), torch.randint(10, (4,))

    def loss(output: Any) -> Tensor:
        return sum(functional.cross_entropy(each, classes) for each in tensors_in(output))

    return Published(model, images, classes, loss)


def of_transformers(name: str) -> Published:
    """The body of a network of transformers, or with `causal:` before the name a language model."""
    transformers = pytest.importorskip("transformers")
    transformers.logging.set_verbosity_error()
    causal, _, kind = name.rpartition(":")
    if kind not in transformers.CONFIG_MAPPING:
        pytest.skip(f"this transformers has no {kind}")
    config = _tiny_config(transformers.CONFIG_MAPPING[kind])
    auto = transformers.AutoModelForCausalLM if causal else transformers.AutoModel
    model = auto.from_config(config).train()
    inputs = _inputs_of(model, config)
    if causal:
        inputs["labels"] = inputs["input_ids"]
        return Published(model, inputs, None, lambda output: output.loss)
    return Published(model, inputs, None, _ToNoise())


def _tiny_config(kind: Any) -> Any:
    usual = kind()
    sizes = {k: v for k, v in TINY.items() if isinstance(getattr(usual, k, None), int)}
    config = kind(**sizes)
    layers = getattr(config, "layer_types", None)
    if layers and len(layers) != 3:
        config = kind(**sizes, layer_types=list(layers[:3]))
    return config


def _inputs_of(model: nn.Module, config: Any) -> dict[str, Tensor]:
    taken = inspect.signature(model.forward).parameters
    inputs: dict[str, Tensor] = {}
    if "input_ids" in taken:
        inputs["input_ids"] = torch.randint(3, 60, (4, 16))
    elif "input_values" in taken:
        inputs["input_values"] = torch.randn(4, 4000)
    elif "input_features" in taken:
        inputs["input_features"] = torch.randn(4, getattr(config, "num_mel_bins", 80), 64)
    if "decoder_input_ids" in taken and getattr(config, "is_encoder_decoder", False):
        inputs["decoder_input_ids"] = torch.randint(3, 60, (4, 16))
    if "pixel_values" in taken:
        size = getattr(config, "image_size", 64)
        size = size if isinstance(size, int) else 64
        inputs["pixel_values"] = torch.randn(4, getattr(config, "num_channels", 3), size, size)
    return inputs


class _ToNoise:
    """Squared distance of the first output from noise that stays the same."""

    def __init__(self) -> None:
        self._noise: Tensor | None = None

    def __call__(self, output: Any) -> Tensor:
        first = next(each for each in tensors_in(output) if each.is_floating_point())
        if self._noise is None:
            generator = torch.Generator().manual_seed(0)
            self._noise = torch.randn(first.shape, generator=generator)
        return functional.mse_loss(first.float(), self._noise)


BUILDERS: dict[str, Callable[[str], Published]] = {
    "torchvision": of_torchvision,
    "timm": of_timm,
    "transformers": of_transformers,
}


def probed(network: Published) -> gradscope.Diagnosis:
    """The diagnosis at initialisation."""
    return gradscope.diagnose(
        gradscope.probe(network.model, network.inputs, network.targets, predict=False)
    )


def watched(network: Published, steps: int = 5) -> gradscope.Diagnosis:
    """The diagnosis after some steps of a plain recipe."""
    optimizer = torch.optim.AdamW(network.model.parameters(), lr=1e-3, fused=True)
    with gradscope.watch(network.model, optimizer, every=1) as scope:
        for _ in range(steps):
            optimizer.zero_grad()
            network.loss(network.call()).backward()
            optimizer.step()
    return gradscope.diagnose(scope.trace())

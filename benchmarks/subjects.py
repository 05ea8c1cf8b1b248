"""Whom the scoreboard judges: trainings with a known fault, their mended twins, sound networks.

All are reproductions of the project's own tests (`tests/casebook.py` and what fills it,
`tests/cases_updates.py`, `tests/zoo.py`), and published networks of torchvision, timm and
transformers at their own initialisation, where these are installed.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import cases_updates
import faults_at_loss
import faults_at_start
import faults_in_graph
import faults_of_recipe
import sound_oddities  # noqa: F401 - fills the casebook
import zoo
from casebook import SICK, SOUND, Trained


@dataclass
class Training:
    """A network in training: `step` does one step."""

    model: nn.Module
    optimizers: list[torch.optim.Optimizer]
    step: Callable[[int], Any]
    steps: int
    watch: dict[str, Any] = field(default_factory=dict)
    """Further arguments of `gradscope.watch`."""


@dataclass(frozen=True)
class Subject:
    """One training to be judged; without kinds it is sound."""

    group: str
    name: str
    build: Callable[[int], Training]
    kinds: frozenset[str] = frozenset()
    """Findings, or verdicts, of which each names the cause."""
    where: str = ""
    """Regular expression that the place matches; empty where it has none."""


GROUPS = {
    faults_at_start: "weights, depth and rate",
    faults_at_loss: "loss, targets and inputs",
    faults_of_recipe: "loss, targets and inputs",
    faults_in_graph: "layers and graph",
}
"""Where a fault of the casebook is told -> its kind."""


def subjects() -> Iterator[Subject]:
    """All of them, sick ones first."""
    yield from _sick()
    yield from _sound()


def _sick() -> Iterator[Subject]:
    modules = {module.__name__: group for module, group in GROUPS.items()}
    for name, build in SICK.items():
        told = build(0, False)
        group, kinds = modules[build.__module__], frozenset(told.kinds)
        yield Subject(group, name, _casebook(build, False), kinds, told.where)
    for name, case in cases_updates.CASES.items():
        if not case.is_healthy:
            group = "between backward and update"
            yield Subject(group, name, _update(name, mended=False), case.kinds)
    for name, label in _labels().items():
        if label != {"healthy"}:
            yield Subject("zoo, sick", name, _member(name), label)


def _sound() -> Iterator[Subject]:
    for name, build in SICK.items():
        yield Subject("mended twins", name, _casebook(build, True))
    for name, case in cases_updates.CASES.items():
        group = "sound, odd" if case.is_healthy else "mended twins"
        yield Subject(group, name, _update(name, mended=True))
    for name, sound in SOUND.items():
        yield Subject("sound, odd", name, lambda seed, sound=sound: _trained(sound(seed)))
    for name, label in _labels().items():
        if label == {"healthy"}:
            yield Subject("zoo, sound", name, _member(name))
    for name, make in published():
        yield Subject("published networks", name, make)


def _labels() -> dict[str, frozenset[str]]:
    return {name: zoo.draw(name, 0).label for name in zoo.KINDS}


def _casebook(build: Callable[[int, bool], Trained], mended: bool) -> Callable[[int], Training]:
    return lambda seed: _trained(build(seed, mended))


def _trained(known: Trained) -> Training:
    parameters = [p for p in known.model.parameters() if p.requires_grad]
    optimizer = known.optimizer(parameters, lr=known.lr)

    def step(i: int) -> None:
        optimizer.zero_grad()
        known.loss(i).backward()
        optimizer.step()
        if known.again is not None:
            known.again(known.model)

    return Training(known.model, [optimizer], step, known.steps)


def _update(name: str, *, mended: bool) -> Callable[[int], Training]:
    def build(seed: int) -> Training:
        torch.manual_seed(seed)
        loop = cases_updates.CASES[name].build(seed, mended)
        held = loop.optimizer if isinstance(loop.optimizer, list) else [loop.optimizer]
        steps = cases_updates.CASES[name].steps
        return Training(loop.model, held, lambda _: loop.step(), steps, loop.watch)

    return build


def _member(name: str) -> Callable[[int], Training]:
    def build(seed: int) -> Training:
        member = zoo.draw(name, seed)
        made = member.optimizer or (lambda p: torch.optim.SGD(p, lr=0.0))
        loss = member.loss or zoo.classify
        return _fixed(
            member.model,
            made,
            lambda: loss(member.model(*member.inputs), member.targets),
            member.steps,
        )

    return build


def _fixed(
    model: nn.Module,
    made: Callable[[Any], torch.optim.Optimizer],
    loss: Callable[[], Tensor],
    steps: int,
) -> Training:
    model.train()
    optimizer = made([p for p in model.parameters() if p.requires_grad])

    def step(_: int) -> None:
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    return Training(model, [optimizer], step, steps)


TIMM = (
    "resnet26", "resnetv2_50", "seresnext26d_32x4d", "efficientnet_lite0", "mobilenetv3_small_100",
    "convnext_atto", "convnextv2_atto", "vit_tiny_patch16_224", "deit_tiny_patch16_224",
    "mixer_s32_224", "resmlp_12_224", "gmlp_ti16_224", "poolformer_s12", "xcit_nano_12_p16_224",
    "edgenext_xx_small", "ghostnet_100",
)  # fmt: skip
TRANSFORMERS = {
    "bert": "BertForSequenceClassification",
    "roberta": "RobertaForSequenceClassification",
    "distilbert": "DistilBertForSequenceClassification",
    "gpt2": "GPT2LMHeadModel",
    "gpt_neox": "GPTNeoXForCausalLM",
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "t5": "T5ForConditionalGeneration",
}
_SMALL = {
    "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 128,
    "vocab_size": 200, "max_position_embeddings": 64, "num_key_value_heads": 2, "n_embd": 64,
    "n_layer": 3, "n_head": 4, "dim": 64, "n_layers": 3, "n_heads": 4, "hidden_dim": 128,
    "d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4, "pad_token_id": 0,
    "decoder_start_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def published() -> Iterator[tuple[str, Callable[[int], Training]]]:
    """Published architectures: at their own initialisation and over five steps of AdamW."""
    for name in zoo.TORCHVISION if importlib.util.find_spec("torchvision") else ():
        if name.startswith("vgg"):  # 130 million weights, and nothing that alexnet has not
            continue
        yield f"torchvision {name}", lambda seed, name=name: _images(seed, _torchvision(name), 64)
    for name in TIMM if importlib.util.find_spec("timm") else ():
        yield f"timm {name}", lambda seed, name=name: _images(seed, _timm(name), 64)
    for name in TRANSFORMERS if importlib.util.find_spec("transformers") else ():
        yield f"transformers {name}", lambda seed, name=name: _text(seed, name)


def _torchvision(name: str) -> Callable[[], nn.Module]:
    from torchvision import models

    extra = {"init_weights": True, "aux_logits": False} if name == "googlenet" else {}
    return lambda: models.get_model(name, num_classes=10, **extra)


def _timm(name: str) -> Callable[[], nn.Module]:
    import timm

    sized = any(part in name for part in ("vit", "deit", "mixer", "mlp"))
    return lambda: timm.create_model(name, num_classes=10, **({"img_size": 64} if sized else {}))


def _images(seed: int, made: Callable[[], nn.Module], size: int) -> Training:
    torch.manual_seed(seed)
    model = made()
    inputs, targets = torch.randn(8, 3, size, size), torch.randint(10, (8,))
    return _fixed(
        model, _adamw, lambda: functional.cross_entropy(logits_in(model(inputs)), targets), 5
    )


def _text(seed: int, name: str) -> Training:
    import transformers

    torch.manual_seed(seed)
    kind = getattr(transformers, TRANSFORMERS[name])
    config = kind.config_class()
    for key, value in _SMALL.items():
        if hasattr(config, key) or key == "decoder_start_token_id":
            setattr(config, key, value)
    model = kind(config)
    tokens = torch.randint(3, 200, (4, 24))
    labels = torch.randint(2, (4,)) if "Classification" in TRANSFORMERS[name] else tokens
    return _fixed(model, _adamw, lambda: model(input_ids=tokens, labels=labels).loss, 5)


def logits_in(output: Any) -> Tensor:
    """The logits in whatever a network returns."""
    return getattr(output, "logits", output)


def _adamw(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, 1e-4)

"""Architectures that others published, as small as they are built, at their own initialisation.

`built(library, name)` makes one with inputs and a loss; `names(library)` are those that are tested.
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


LARGE = 50_000_000
"""Parameters from which a network is trained by SGD."""

OWN = {
    # Blocks of tokens that are pressed into one: shorter than the sequence, as in its use.
    "deepseek_v4": {
        "compress_rates": {"compressed_sparse_attention": 2, "heavily_compressed_attention": 4}
    },
}
"""What stands in the place of sizes that only make sense with the published ones."""


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


_TRANSFORMERS = """
    afmoe aimv2_vision_model albert apertus apertus1p5_text arcee aria_text bart beam beit bert
    bert-generation big_bird bigbird_pegasus biogpt bitnet blenderbot blenderbot-small bloom
    camembert canine chinese_clip_vision_model clip_text_model clip_vision_model cohere cohere2
    cohere2_moe convbert cpmant ctrl cwm data2vec-audio data2vec-text data2vec-vision deberta
    deberta-v2 deepseek_v4 deit diffllama dinov2 dinov2_with_registers dinov3_vit distilbert doge
    dory dpr dpt electra ernie ernie4_5 ernie4_5_moe eurobert exaone exaone4 exaone_moe
    falcon_mamba flaubert flex_olmo flint fnet fsmt gemma gemma2 gemma3_text glm glm4 glm4_moe
    glmasr_encoder glpn gpt-sw3 gpt2 gpt_bigcode gpt_neox gpt_neox_japanese gpt_oss granite
    granite_docling_text granite_swa granitemoe granitemoe_swa granitemoeshared gte helium
    higgs_audio_v2 hrm_text hubert hy_v3 hyperclovax ibert idefics3_vision ijepa imagegpt
    inkling2_loop_text inkling2_text inkling_text internlm3 internvl_vision iquestcoder jais2
    jetmoe jina_embeddings_v3 kolibri1 laguna lara_mini layoutlm led lfm2 lfm3 llama llama4_text
    longformer longt5 m2m_100 mamba marian markuplm mbart megatron-bert mellum mimo_v2_flash
    minimax minimax_m2 minimax_m3_vl_text ministral3 mistral mixtral mlcd mlcd_vision_model
    mobilebert mobilenet_v1 mobilenet_v2 mobilevit modernbert modernbert-decoder molmo2_text
    moonshine moshi mpnet mpt mra mt5 muse_glimmer_text mvp nanochat nllb-moe nomic_bert
    nystromformer olmo olmo2 olmo3 olmo_hybrid olmoe openai-gpt openai_privacy_filter opt pegasus
    pegasus_x persimmon phi phi3 phimoe pixio pixtral plbart pp_ocrv6_small_rec pp_ocrv6_tiny_rec
    pvt_v2 qianfan_ocr_vision qwen2 qwen2_moe qwen3 qwen3_moe qwen3_vl_moe_text qwen3_vl_text
    radio recurrent_gemma rembert roberta roberta-prelayernorm roformer rwkv
    sam3_lite_text_text_model sam3_vit_model sam_hq_vision_model sam_vision_model sapiens2
    sarvam_moe seed_oss segformer sew sew-d siglip_vision_model smollm3 smolvlm_vision solar_open
    splinter squeezebert stablelm starcoder2 swiftformer switch_transformers t5 tapas
    tipsv2_text_model tipsv2_vision_model ultrabert umt5 unispeech-sat vaultgemma vilt visual_bert
    vit vit_mae vit_msn vitdet voxtral_realtime_encoder wav2vec2 wav2vec2-conformer wavlm xglm xlm
    xlm-roberta xlm-roberta-xl yolos yoso
"""

_CAUSAL = """
    bloom cohere gemma gemma2 gpt2 gpt_neox granite llama mamba mistral mixtral mpt olmo
    opt phi qwen2 qwen3 stablelm
"""

_TIMM_SMALL = """
    coat_lite_tiny coat_tiny convit_tiny convnext_atto cpubone_nano cpubone_t0 cs3darknet_s
    cspnext_tiny deit_tiny_distilled_patch16_224 deit_tiny_patch16_224 edgenext_small
    efficientvim_m1 efficientvit_b0 efficientvit_m0 eva02_tiny_patch14_224 eva02_tiny_patch14_336
    fasternet_t0 hardcorenas_a inception_next_atto mobilenetv3_small_050 mobilevit_xs
    mobilevit_xxs pvt_v2_b0 repghostnet_050 repvit_m1 rexnet_100 starnet_s1 swiftformer_xs
    test_byobnet test_coatnet test_convnext test_convnext2 test_efficientnet
    test_efficientnet_evos test_mambaout test_maxvit test_nfnet test_resnet test_vit test_vit2
    test_vit_relpos tinynet_a vit_pe_core_tiny_patch16_384 vit_tiny_patch16_224
    xcit_nano_12_p16_224
"""

_TIMM = """
    caformer_s18 cait_xxs24_224 cait_xxs24_384 cait_xxs36_224 convmixer_768_32 cpubone_s0
    crossvit_tiny_240 csatv2 davit_tiny densenet121 dla34 dpn68 efficientformer_l1
    efficientformerv2_s0 ese_vovnet19b_slim fastvit_s12 focalnet_tiny_lrf focalnet_tiny_srf
    gcvit_tiny gcvit_xtiny gernet_s ghostnet_050 ghostnetv3_050 gmlp_s16_224 hgnet_tiny
    hiera_tiny_224 hrnet_w18_small iformer_s inception_next_tiny inception_v3 lcnetv2_small
    levit_384_s8 lowformer_b0 mambaout_femto maxvit_pico_rw_256 mvitv2_tiny nest_tiny nest_tiny_jx
    nextvit_small nf_seresnet26 pit_xs_224 pit_xs_distilled_224 rdnet_tiny regnety_040_sgn
    res2net50d resnest14d resnet18 resnetv2_18 sam2_hiera_tiny selecsls42 sequencer2d_s shvit_s1
    skresnet18 swin_tiny_patch4_window7_224 swinv2_cr_tiny_224 tiny_vit_11m_224 tiny_vit_5m_224
    tnt_s_patch16_224 visformer_tiny
"""


def names(library: str) -> list[str]:
    """What is tested of a library; of torchvision all that classifies."""
    if library == "torchvision":
        from torchvision import models

        return models.list_models(module=models)
    if library == "timm":
        return [*_TIMM_SMALL.split(), *_TIMM.split()]
    return [*_TRANSFORMERS.split(), *(f"causal:{name}" for name in _CAUSAL.split())]


def is_trained(library: str, name: str) -> bool:
    """Whether it is judged after some steps as well; of timm those that take little time."""
    return library != "timm" or name in _TIMM_SMALL.split()


def split(name: str) -> tuple[str, str]:
    """The library and the name there of `library/name`."""
    library, _, own = name.partition("/")
    return library, own


def built(library: str, name: str, seed: int = 0) -> Published:
    """A network of a library, drawn anew; skips where the library does not hold it."""
    torch.manual_seed(seed)
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
        size = 299  # its auxiliary head takes no less
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
    config = _tiny_config(transformers.CONFIG_MAPPING[kind], **OWN.get(kind, {}))
    auto = transformers.AutoModelForCausalLM if causal else transformers.AutoModel
    model = auto.from_config(config).train()
    inputs = _inputs_of(model, config)
    if causal:
        inputs["labels"] = inputs["input_ids"]
        return Published(model, inputs, None, lambda output: output.loss)
    return Published(model, inputs, None, _ToNoise())


def _tiny_config(kind: Any, **own: Any) -> Any:
    usual = kind()
    sizes = {k: v for k, v in TINY.items() if isinstance(getattr(usual, k, None), int)} | own
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
    parameters = list(network.model.parameters())
    if sum(p.numel() for p in parameters) > LARGE:  # no room for moments
        optimizer = torch.optim.SGD(parameters, lr=0.01, fused=True)
    else:
        optimizer = torch.optim.AdamW(parameters, lr=1e-3, fused=True)
    with gradscope.watch(network.model, optimizer, every=1) as scope:
        for _ in range(steps):
            optimizer.zero_grad()
            network.loss(network.call()).backward()
            optimizer.step()
    return gradscope.diagnose(scope.trace())


@dataclass(frozen=True)
class Sick:
    """A published network that is called sick, and is."""

    verdict: str
    why: str
    """The reason, with the loss after 200 steps as it is and mended."""
    mend: Callable[[nn.Module], None]

    def mended(self, network: Published) -> Published:
        """The network with the remedy of its finding."""
        self.mend(network.model)
        return network


def _shortcuts(model: nn.Module) -> None:
    for block in model.modules():
        if hasattr(block, "use_shortcut"):
            block.use_shortcut = block.stride == 1 and block.in_chs == block.out_chs


def _gains_of_one(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)


def _usual_scale(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.normal_(module.weight, std=0.02)


def _exact_attention(model: nn.Module) -> None:
    """What the kernels that are missing approximate."""

    def forward(self: nn.Module, hidden_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor]:
        parts = (layer(hidden_states) for layer in (self.query, self.key, self.value))
        heads = (self.num_attention_heads, self.attention_head_size)
        q, k, v = (part.unflatten(-1, heads).transpose(1, 2) for part in parts)
        return (functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2),)

    for module in model.modules():
        if type(module).__name__ == "MraSelfAttention":
            module.forward = forward.__get__(module)


SICK = {
    "timm/lcnetv2_small": Sick(
        "exploding",
        "25 batch norms in a row that nothing leads around; 0.357, with shortcuts 0.010",
        _shortcuts,
    ),
    "transformers/mobilevit": Sick(
        "vanishing",
        "the gains of its batch norms are drawn around zero; 2.084, with gains of one 0.530",
        _gains_of_one,
    ),
    "transformers/mra": Sick(
        "disconnected",
        "without its kernels attention is zero; 2.312, with exact attention 0.030",
        _exact_attention,
    ),
    "transformers/sam_hq_vision_model": Sick(
        "dead",
        "weights are drawn with 1e-10; by SGD at 0.01 1.867, drawn with 0.02 0.013",
        _usual_scale,
    ),
    "transformers/sam_vision_model": Sick(
        "dead",
        "weights are drawn with 1e-10; by SGD at 0.01 1.867, drawn with 0.02 0.013 (AdamW, whose "
        "steps do not depend on the scale of a gradient, 0.018 and 0.003)",
        _usual_scale,
    ),
}
"""Library and name -> why; chance is 2.303. The losses are those of one seed of
`benchmarks/published_exceptions.py`, by AdamW at 1e-3 unless stated."""

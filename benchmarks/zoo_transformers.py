"""Architectures of Hugging Face Transformers, small, from a configuration and with no weights.

Each brings its own loss.
"""

from __future__ import annotations

from typing import Any

import torch
import transformers as t
import zoo_torch
from torch import nn

CLASSES = 4
SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "num_labels": CLASSES,
}
WORDS, LENGTH = 50, 12
STAGES: dict[str, Any] = {
    "hidden_sizes": [16, 32, 32, 64],
    "depths": [1, 1, 1, 1],
    "num_labels": CLASSES,
}


def _text(name: str, **options: Any) -> Any:
    def build(size: int) -> nn.Module:
        config = getattr(t, f"{name}Config")(vocab_size=WORDS, pad_token_id=0, **options)
        return getattr(t, f"{name}ForSequenceClassification")(config)

    return build


def _image(name: str, sized: bool = False, **options: Any) -> Any:
    def build(size: int) -> nn.Module:
        image = {"image_size": size, "patch_size": 8} if sized else {}
        config = getattr(t, f"{name}Config")(num_channels=3, **image, **options)
        return getattr(t, f"{name}ForImageClassification")(config)

    return build


ZOO = {
    "BERT": _text("Bert", **SMALL),
    "DistilBERT": _text("DistilBert", dim=32, n_layers=2, n_heads=4, hidden_dim=64, num_labels=4),
    "RoBERTa": _text("Roberta", **SMALL),
    "GPT-2": _text("GPT2", n_embd=32, n_layer=2, n_head=4, num_labels=CLASSES),
    "Llama": _text("Llama", num_key_value_heads=2, **SMALL),
    "ViT": _image("ViT", sized=True, **SMALL),
    "DeiT": _image("DeiT", sized=True, **SMALL),
    "ResNet": _image("ResNet", embedding_size=16, layer_type="basic", **STAGES),
    "RegNet": _image("RegNet", embedding_size=16, groups_width=8, **STAGES),
    "MobileNetV2": _image("MobileNetV2", depth_multiplier=0.35, num_labels=CLASSES),
    "ConvNeXtV2": _image("ConvNextV2", **STAGES),
}
TEXTS = {"BERT", "DistilBERT", "RoBERTa", "GPT-2", "Llama"}
PLANNED = 20_000
"""MobileNetV2's momentum of 0.997, in Keras's sense, forgets too slowly for a check's steps."""


def build(name: str, size: int, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return ZOO[name](size)


def data(name: str, size: int, samples: int, seed: int) -> dict[str, Any]:
    """Noise around a picture, or words around a vocabulary, for each of four classes."""
    if name in TEXTS:
        rng, labels = torch.Generator().manual_seed(seed), torch.arange(samples) % CLASSES
        words = torch.randint(1, 10, (samples, LENGTH), generator=rng) + 10 * labels[:, None]
        return {"input_ids": words, "labels": labels}
    images, labels = zoo_torch.data(name, size, samples, seed)
    return {"pixel_values": images, "labels": labels}


loss = None

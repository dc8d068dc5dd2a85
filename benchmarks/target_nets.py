"""Functions that make models, as `--bncheck-model` takes them."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(20, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 5))


def layernorm() -> nn.Module:
    return nn.Sequential(nn.Linear(20, 64), nn.LayerNorm(64), nn.Dropout(0.2), nn.Linear(64, 5))


def cnn(momentum: float = 0.1) -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16, momentum=momentum), nn.ReLU()),
        *(nn.Conv2d(16, 32, 3, 2), nn.BatchNorm2d(32, momentum=momentum), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128, 10)),
    )


def long_memory() -> nn.Module:
    return cnn(momentum=0.001)


def regressor() -> nn.Module:
    return nn.Sequential(nn.Linear(13, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 1))


def autoencoder() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv1d(2, 8, 5, 2, 2), nn.BatchNorm1d(8), nn.ReLU()),
        nn.ConvTranspose1d(8, 2, 4, 2, 1),
    )


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.LSTM(8, 32, 2, batch_first=True, dropout=0.2)
        self.out = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.cells(x)[0][:, -1])


class Text(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.codes = nn.Embedding(1000, 32)
        self.layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
        self.out = nn.Linear(32, 3)

    def forward(self, codes: Tensor) -> Tensor:
        return self.out(self.layer(self.codes(codes)).mean(1))


class Residual(nn.Module):
    """A residual net as they are published, in small."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU())
        self.blocks = nn.ModuleList(
            nn.Sequential(
                *(nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
                *(nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16)),
            )
            for _ in range(3)
        )
        self.out = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = (x + block(x)).relu()
        return self.out(x.mean((2, 3)))


# with a fault -------------------------------------------------------------------------------------


class AlwaysDropped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.out = nn.Linear(20, 64), nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(functional.dropout(self.first(x).relu(), 0.3))


class InAList(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.drops = [nn.Dropout(0.5)]
        self.first, self.out = nn.Linear(20, 64), nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.drops[0](self.first(x).relu()))


class Scaled(nn.Module):
    """Does something else in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.out = nn.Linear(20, 64), nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        return self.out(x if self.training else -x)


def without_statistics() -> nn.Module:
    norm = nn.BatchNorm1d(64, track_running_stats=False)
    return nn.Sequential(nn.Linear(20, 64), norm, nn.ReLU(), nn.Linear(64, 5))


def swapped_momentum() -> nn.Module:
    norm = nn.BatchNorm1d(64, momentum=0.9)
    return nn.Sequential(nn.Linear(20, 64), norm, nn.ReLU(), nn.Linear(64, 5))


# of Transformers, without weights -----------------------------------------------------------------


def bert() -> Any:
    from transformers import BertConfig, BertForSequenceClassification

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = BertConfig(vocab_size=200, intermediate_size=64, num_labels=3, **sizes)
    return BertForSequenceClassification(config)


def gpt() -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(vocab_size=200, n_embd=32, n_layer=2, n_head=2))


def vit() -> Any:
    from transformers import ViTConfig, ViTForImageClassification

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = ViTConfig(image_size=32, patch_size=8, intermediate_size=64, num_labels=4, **sizes)
    return ViTForImageClassification(config)

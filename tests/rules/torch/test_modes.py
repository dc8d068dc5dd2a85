"""Reported faults of modes in PyTorch, each on several networks and seeds, each in its place."""

from __future__ import annotations

import random

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import Tensor, nn
from torch.nn import functional as F

from pytest_bncheck import check
from torch_nets import (
    CLASSES,
    KIND,
    NORMS,
    SEED,
    Net,
    data,
    line,
    sole,
)

RANDOM = "intended: stochastic-eval"


# BN301: modules that eval() does not reach -------------------------------------------------------


class Kept(Net):
    """Normalisation layers of blocks that are kept where the model cannot see them."""

    def __init__(self, kind: str, seed: int, where: str) -> None:
        super().__init__(kind, seed)
        self.where = where
        norms = [block.norm for block in self.blocks]
        for block in self.blocks:
            block.norm = nn.Identity()
        if where == "list":
            self.norms = norms
        elif where == "dict":
            self.norms = {"first": norms[0], "second": norms[1]}
        else:
            self.holder = Holder(norms)

    def norm(self, index: int) -> nn.Module:
        if self.where == "list":
            return self.norms[index]
        if self.where == "dict":
            return self.norms["second" if index else "first"]
        return self.holder.norms[index]

    def features(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        for index, block in enumerate(self.blocks):
            x = block(self.norm(index)(x))
        return x.flatten(2).mean(2) if x.dim() > 2 else x


class Holder:
    """A plain object."""

    def __init__(self, norms: list[nn.Module]) -> None:
        self.norms = norms


PATHS = {
    "list": ["norms[0]", "norms[1]"],
    "dict": ["norms['first']", "norms['second']"],
    "object": ["holder.norms[0]", "holder.norms[1]"],
}


@pytest.mark.parametrize("where", PATHS)
@KIND
@SEED
def test_batch_norm_out_of_sight(kind, seed, where):
    report = check(Kept(kind, seed, where), data(kind, seed), steps=150, seed=seed)
    finding = sole(report, "BN301")
    assert finding.layers == PATHS[where]
    assert "nn.ModuleList" in finding.remedy
    for path in PATHS[where]:
        assert path in finding.message


@KIND
@SEED
def test_dropout_in_a_list(kind, seed):
    model = Net(kind, seed)
    model.drops = [nn.Dropout(0.5)]
    model.classify = lambda h: model.head(model.drops[0](h))
    finding = sole(check(model, data(kind, seed), steps=150, seed=seed), "BN301")
    assert finding.layers == ["drops[0]"]


class Encoder(nn.Module):
    """Blocks in a plain list, inside of a registered module."""

    def __init__(self, net: Net) -> None:
        super().__init__()
        self.blocks = list(net.blocks)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


@KIND
@SEED
def test_blocks_in_a_list_name_their_normalisation(kind, seed):
    net = Net(kind, seed)
    pool = nn.Flatten() if kind == "mlp" else nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    whole = nn.Sequential(net.stem, Encoder(net), pool, net.head)
    finding = sole(check(whole, data(kind, seed), steps=150, seed=seed), "BN301")
    assert finding.layers == ["1.blocks[0].norm", "1.blocks[1].norm"]


class NotRecursing(Net):
    """Dropout before the classifier; its train() sets its own flag only."""

    def __init__(self, kind: str, seed: int) -> None:
        super().__init__(kind, seed)
        self.drop = nn.Dropout(0.5)

    def classify(self, h: Tensor) -> Tensor:
        return self.head(self.drop(h))

    def train(self, mode: bool = True) -> NotRecursing:
        self.training = mode
        return self


@KIND
@SEED
def test_train_override_that_does_not_recurse(kind, seed):
    report = check(NotRecursing(kind, seed), data(kind, seed), steps=150, seed=seed)
    finding = sole(report, "BN301")
    assert sorted(finding.layers) == [*NORMS, "drop"]
    assert "super().train(mode)" in finding.remedy


@KIND
@SEED
def test_child_with_a_train_override_of_its_own(kind, seed):
    """The child alone refuses to leave training mode."""
    model = nn.Sequential(NotRecursing(kind, seed), nn.Linear(CLASSES, CLASSES))
    finding = sole(check(model, data(kind, seed), steps=150, seed=seed), "BN301")
    assert sorted(finding.layers) == [*(f"0.{name}" for name in NORMS), "0.drop"]


# BN302: random numbers in eval mode --------------------------------------------------------------


class FunctionalDropout(Net):
    def classify(self, h: Tensor) -> Tensor:
        h = F.dropout(h, 0.5)
        return self.head(h)


class BuiltInForward(Net):
    def classify(self, h: Tensor) -> Tensor:
        h = nn.Dropout(0.4)(h)
        return self.head(h)


class Attention(Net):
    def classify(self, h: Tensor) -> Tensor:
        q = h.reshape(len(h), 1, 4, 4)
        a = F.scaled_dot_product_attention(q, q, q, dropout_p=0.3)
        return self.head(h + a.flatten(1))


class CachedFlag(Net):
    def __init__(self, kind: str, seed: int) -> None:
        super().__init__(kind, seed)
        self.dropping = self.training

    def classify(self, h: Tensor) -> Tensor:
        h = F.dropout(h, p=0.3, training=self.dropping)
        return self.head(h)


class Sampling(Net):
    """A variational bottleneck that samples in both modes."""

    def classify(self, h: Tensor) -> Tensor:
        h = h + 0.5 * torch.randn_like(h)
        return self.head(h)


class HostRandomDepth(Net):
    """Stochastic depth with Python's generator, in both modes."""

    def classify(self, h: Tensor) -> Tensor:
        keep = random.random() > 0.02
        return self.head(1.5 * h if keep else h)


class NumpyRandomDepth(Net):
    def classify(self, h: Tensor) -> Tensor:
        return self.head(h * (1.0 + keep_or_not()))


def keep_or_not() -> float:
    """A helper outside of the model."""
    keep = np.random.rand() > 0.5
    return float(keep)


CALLS = {
    FunctionalDropout: ("F.dropout(p=0.5, training=True)", "h = F.dropout(h, 0.5)"),
    BuiltInForward: ("F.dropout(p=0.4, training=True)", "h = nn.Dropout(0.4)(h)"),
    Attention: (
        "F.scaled_dot_product_attention(dropout_p=0.3)",
        "a = F.scaled_dot_product_attention(q, q, q, dropout_p=0.3)",
    ),
    CachedFlag: (
        "F.dropout(p=0.3, training=True)",
        "h = F.dropout(h, p=0.3, training=self.dropping)",
    ),
    Sampling: ("torch.randn_like()", "h = h + 0.5 * torch.randn_like(h)"),
}


@pytest.mark.parametrize("model", CALLS)
@KIND
@SEED
def test_call_that_draws_random_numbers(model, kind, seed):
    report = check(model(kind, seed), data(kind, seed), steps=150, seed=seed)
    finding = sole(report, "BN302")
    assert finding.severity == "error"
    assert report.verdict == "fail"
    call, source = CALLS[model]
    assert call in finding.message
    assert line(__file__, source) in finding.message
    assert finding.cause.startswith(call)


@pytest.mark.parametrize("model", [FunctionalDropout, Attention])
@KIND
def test_call_inside_of_a_child_names_the_child(model, kind):
    whole = nn.ModuleDict({"body": model(kind, 0), "head": nn.Linear(CLASSES, CLASSES)})
    report = check(whole, data(kind), steps=150, forward=lambda m, b: m["head"](m["body"](b[0])))
    assert " in body, " in sole(report, "BN302").message


HOST = {
    HostRandomDepth: ("Python's random", "keep = random.random() > 0.02"),
    NumpyRandomDepth: ("numpy.random", "keep = np.random.rand() > 0.5"),
}


@pytest.mark.parametrize("model", HOST)
@KIND
@SEED
def test_random_numbers_of_the_host(model, kind, seed):
    """At 2 % every pass here may repeat exactly: the generator moved, that is enough."""
    report = check(model(kind, seed), data(kind, seed), steps=150, seed=seed)
    finding = sole(report, "BN302")
    generator, source = HOST[model]
    assert f"It comes from {generator}, {line(__file__, source)}." in finding.message


class OwnGenerator(Net):
    """Noise from a generator of its own: the global ones do not move."""

    def __init__(self, kind: str, seed: int) -> None:
        super().__init__(kind, seed)
        self.generator = torch.Generator().manual_seed(seed)

    def classify(self, h: Tensor) -> Tensor:
        noise = torch.rand(h.shape, generator=self.generator)
        return self.head(h + noise)


@KIND
@SEED
def test_random_numbers_of_an_own_generator(kind, seed):
    report = check(OwnGenerator(kind, seed), data(kind, seed), steps=150, seed=seed)
    finding = sole(report, "BN302")
    assert (
        line(__file__, "noise = torch.rand(h.shape, generator=self.generator)") in finding.message
    )


@pytest.mark.parametrize("model", [*CALLS, HostRandomDepth])
def test_random_numbers_on_purpose(model):
    report = check(model("mlp", 0), data("mlp"), steps=150, intended=["stochastic-eval"])
    assert not report.findings, str(report)
    assert [(each.code, each.reason) for each in report.suppressed] == [("BN302", RANDOM)]

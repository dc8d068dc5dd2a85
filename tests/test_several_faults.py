"""Networks with several faults, and what `select`, `ignore` and `intended` leave of them."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import Tensor, nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from pytest_bncheck import InputError, check  # noqa: E402

from .rules.torch_nets import FAST, KINDS, NORMS, Net, data  # noqa: E402

KIND = pytest.mark.parametrize("kind", KINDS)


class Dropping(Net):
    """Functional dropout that does not mind the mode."""

    def classify(self, h: Tensor) -> Tensor:
        return self.head(F.dropout(h, 0.3))


class Listed(Dropping):
    """And its first block in a plain list."""

    def __init__(self, kind: str) -> None:
        super().__init__(kind)
        self.hidden = [self.blocks[0]]
        self.blocks = nn.ModuleList([self.blocks[1]])

    def features(self, x: Tensor) -> Tensor:
        x = self.hidden[0](torch.relu(self.stem(x)))
        x = self.blocks[0](x)
        return x.flatten(2).mean(2) if x.dim() > 2 else x


class Flipped(Net):
    """Another order of the classes in eval mode."""

    def classify(self, h: Tensor) -> Tensor:
        logits = self.head(h)
        return logits if self.training else logits.flip(1)


def codes(report: Any) -> list[str]:
    return sorted(finding.code for finding in report.findings)


def suppressed(report: Any) -> dict[str, str]:
    return {each.code: each.reason for each in report.suppressed}


# several faults at once --------------------------------------------------------------------------


@KIND
def test_hidden_normalisation_and_functional_dropout(kind):
    report = check(Listed(kind), data(kind), steps=150)
    assert codes(report) == ["BN301", "BN302"], str(report)
    by_code = {finding.code: finding for finding in report.findings}
    assert by_code["BN301"].layers == ["hidden[0].norm"]
    assert "F.dropout(p=0.3, training=True)" in by_code["BN302"].message
    assert report.verdict == "fail"


@KIND
def test_forgetful_momentum_and_functional_dropout(kind):
    report = check(Dropping(kind, momentum=0.99), data(kind), steps=150)
    assert codes(report) == ["BN104", "BN302"], str(report)
    assert [finding.severity for finding in report.findings] == ["error", "warning"]


@KIND
def test_one_layer_never_updates_and_the_others_lag(kind):
    model = Net(kind, momentum=0.001)
    model.blocks[0].norm.momentum = 0.0
    report = check(model, data(kind, contrast=0.1), steps=40, optimizer=FAST)
    by_code = {finding.code: finding for finding in report.findings}
    assert sorted(by_code) == ["BN101", "BN103"], str(report)
    assert by_code["BN103"].layers == [NORMS[0]]
    assert by_code["BN101"].layers == [NORMS[1]]


@KIND
def test_never_updating_layers_explain_the_broken_prediction(kind):
    """Both are broken by one cause: nothing is said twice."""
    report = check(Net(kind, momentum=0.0), data(kind, contrast=0.1), steps=60, optimizer=FAST)
    assert codes(report) == ["BN103"], str(report)


@KIND
def test_other_path_and_slow_average(kind):
    report = check(Flipped(kind, momentum=0.001), data(kind), steps=40, optimizer=FAST)
    assert codes(report) == ["BN101", "BN201"], str(report)


@KIND
def test_poisoned_statistics_and_functional_dropout(kind):
    model = Dropping(kind)
    model.blocks[1].norm.running_var.fill_(torch.inf)
    report = check(model, data(kind), steps=40)
    assert codes(report) == ["BN105", "BN302"], str(report)
    assert report.findings[0].layers == [NORMS[1]]


@KIND
def test_statistics_of_the_batch_and_a_counter(kind):
    class Counting(Net):
        def classify(self, h: Tensor) -> Tensor:
            self.seen += len(h)
            return self.head(h)

    model = Counting(kind, track_running_stats=False)
    model.register_buffer("seen", torch.zeros((), dtype=torch.long))
    report = check(model, data(kind), steps=60)
    assert codes(report) == ["BN303", "BN304"], str(report)


@KIND
def test_errors_come_before_warnings(kind):
    report = check(Dropping(kind, momentum=0.99), data(kind), steps=150)
    severities = [finding.severity for finding in report.findings]
    assert severities == sorted(severities)


# what the user leaves of them --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ignore", "reasons"),
    [
        ("BN302: sampled on purpose", {"BN302": "ignored: sampled on purpose"}),
        ("stochastic-eval", {"BN302": "ignored"}),
        (["BN1", "BN3: not now"], {"BN104": "ignored", "BN302": "ignored: not now"}),
        ({"BN104": "as in the paper"}, {"BN104": "ignored: as in the paper"}),
    ],
)
def test_ignore(ignore, reasons):
    report = check(Dropping("mlp", momentum=0.99), data("mlp"), steps=150, ignore=ignore)
    assert suppressed(report) == reasons
    assert set(codes(report)) == {"BN104", "BN302"} - set(reasons)
    assert all(each.message and each.name for each in report.suppressed)
    assert report.verdict == {
        frozenset(): "pass", frozenset({"BN104"}): "warn", frozenset({"BN302"}): "fail"
    }[frozenset(codes(report))]  # fmt: skip


@pytest.mark.parametrize(
    ("select", "left"),
    [
        ("BN104", ["BN104"]),
        ("BN3", ["BN302"]),
        (["BN1", "stochastic-eval"], ["BN104", "BN302"]),
        ("BN2", []),
    ],
)
def test_select(select, left):
    report = check(Dropping("mlp", momentum=0.99), data("mlp"), steps=150, select=select)
    assert codes(report) == left
    assert not report.suppressed


def test_select_and_ignore_together():
    report = check(
        Dropping("mlp", momentum=0.99), data("mlp"), steps=150, select="BN3", ignore="BN302"
    )
    assert codes(report) == []
    assert suppressed(report) == {"BN302": "ignored"}


@KIND
def test_an_ignored_cause_still_explains_its_layers(kind):
    """BN103 is accepted; it would be no help to report the same layers as BN101 instead."""
    model, batch = Net(kind, momentum=0.0), data(kind, contrast=0.1)
    report = check(model, batch, steps=60, optimizer=FAST, ignore="BN103: constant on purpose")
    assert codes(report) == [], str(report)
    assert suppressed(report) == {"BN103": "ignored: constant on purpose"}
    assert report.verdict == "pass"
    assert report.bn_verdict == "broken"


@KIND
def test_intended_silences_its_own_rules_only(kind):
    model, batch = Dropping(kind, momentum=0.99), data(kind)
    report = check(model, batch, steps=150, intended="stochastic-eval")
    assert codes(report) == ["BN104"]
    assert suppressed(report) == {"BN302": "intended: stochastic-eval"}
    other = check(model, batch, steps=150, intended="mode-dependent-path")
    assert codes(other) == ["BN104", "BN302"]
    assert not other.suppressed


@KIND
def test_hidden_normalisation_is_no_intended_randomness(kind):
    """Dropout on purpose does not excuse a normalisation that eval() cannot find."""
    report = check(Listed(kind), data(kind), steps=150, intended="stochastic-eval")
    assert codes(report) == ["BN301"], str(report)
    assert suppressed(report) == {"BN302": "intended: stochastic-eval"}


def test_intended_names_are_checked():
    with pytest.raises(InputError, match="stochastic-eval"):
        check(Net("mlp"), data("mlp"), intended="stochastic")


def test_strict_fails_on_a_warning():
    model, batch = Net("mlp", momentum=0.99), data("mlp")
    assert check(model, batch, steps=150).verdict == "warn"
    assert check(model, batch, steps=150, strict=True).verdict == "fail"
    assert check(model, batch, steps=150, strict=True, ignore="BN104").verdict == "pass"


@KIND
def test_dropout_that_stays_on_by_design(kind):
    """Monte Carlo dropout by way of an override: the module ignores the mode, on purpose."""

    class MonteCarlo(nn.Dropout):
        def train(self, mode: bool = True) -> MonteCarlo:
            return super().train(True)

    model = Net(kind)
    model.head = nn.Sequential(MonteCarlo(0.3), model.head)
    report = check(model, data(kind), steps=150)
    assert codes(report) == ["BN301"], str(report)
    assert report.findings[0].layers == ["head.0"]
    report = check(model, data(kind), steps=150, intended="stochastic-eval")
    assert codes(report) == [], str(report)
    assert suppressed(report) == {"BN301": "intended: stochastic-eval"}


@KIND
def test_normalisation_that_stays_on_by_design(kind):
    """Test-time adaptation: the layers see the batch on purpose; their buffers move."""

    class Adapting(nn.BatchNorm1d if kind == "mlp" else nn.BatchNorm2d):
        def train(self, mode: bool = True) -> Adapting:
            return super().train(True)

    report = check(Net(kind, norm=Adapting), data(kind), steps=150)
    assert codes(report) == ["BN301"], str(report)
    assert report.findings[0].layers == NORMS
    report = check(
        Net(kind, norm=Adapting), data(kind), steps=150, intended="batch-statistics-in-eval"
    )
    assert codes(report) == [], str(report)
    assert suppressed(report) == {"BN301": "intended: batch-statistics-in-eval"}
    report = check(Net(kind, norm=Adapting), data(kind), steps=150, intended="stochastic-eval")
    assert codes(report) == ["BN301"], str(report)

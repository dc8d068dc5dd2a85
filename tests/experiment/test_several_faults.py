"""Networks with several faults, and what `select`, `ignore` and `intended` leave of them."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import Tensor, nn
from torch.nn import functional as F

from pytest_bncheck import InputError, check
from torch_nets import FAST, KIND, NORMS, Net, data


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
def test_a_slow_average_on_another_path_is_not_scored(kind):
    """What the statistics would do to the classes in their own order nobody sees in eval mode."""
    report = check(Flipped(kind, momentum=0.001), data(kind), steps=40, optimizer=FAST)
    assert codes(report) == ["BN201"], str(report)
    assert report.findings[0].severity == "error"
    (note,) = (note for note in report.notes if note.code == "BN101")
    assert "with batch statistics" in note.message  # training mode is that of the other path


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
            return self.head(h) + self.seen % 7

    model = Counting(kind, track_running_stats=False)
    model.register_buffer("seen", torch.zeros((), dtype=torch.long))
    report = check(model, data(kind), steps=60)
    assert codes(report) == ["BN303", "BN304"], str(report)


@KIND
def test_errors_come_before_warnings(kind):
    report = check(Dropping(kind, momentum=0.99), data(kind), steps=150)
    severities = [finding.severity for finding in report.findings]
    assert severities == sorted(severities)


# one fault that looks like another ---------------------------------------------------------------


def test_few_values_do_not_hide_a_slow_average():
    """Each row of the batch is a value; no decision feels the floor, so it is a note."""
    report = check(Net("mlp", momentum=0.003), data("mlp", samples=8), steps=40, optimizer=FAST)
    assert codes(report) == ["BN101"], str(report)
    assert report.findings[0].layers == NORMS
    assert [note.code for note in report.notes] == ["BN106"]


class FlippedFeatures(Net):
    """Another order of the features between the blocks in eval mode."""

    def features(self, x: Tensor) -> Tensor:
        x = self.blocks[0](torch.relu(self.stem(x)))
        x = self.blocks[1](x if self.training else x.flip(1))
        return x.flatten(2).mean(2) if x.dim() > 2 else x


@KIND
def test_another_path_is_no_lag(kind):
    """The statistics fit the path that they were trained on."""
    report = check(FlippedFeatures(kind), data(kind), steps=150, optimizer=FAST)
    assert codes(report) == ["BN201"], str(report)
    assert report.findings[0].severity == "error"
    assert max(layer.distortion for layer in report.layers) < 0.05


@KIND
@pytest.mark.parametrize("mixed", [0.0, 0.3])
def test_statistics_that_fit_another_path_make_an_error(kind, mixed):
    """The batch's own statistics would hide what a shift in eval mode does."""

    class Shifted(Net):
        def features(self, x: Tensor) -> Tensor:
            x = self.blocks[0](torch.relu(self.stem(x)))
            x = self.blocks[1](x if self.training else x + mixed * x.roll(1, 1) + 3.0)
            return x.flatten(2).mean(2) if x.dim() > 2 else x

    report = check(Shifted(kind), data(kind), steps=150, optimizer=FAST)
    assert report.predictions.eval.accuracy < 0.9
    assert codes(report) == ["BN201"], str(report)
    assert report.verdict == "fail"
    assert "With converged statistics the predictions differ" in report.findings[0].message


def test_a_lag_on_another_path_is_no_second_error():
    """What the statistics would do on their own path cannot be seen in eval mode."""
    fast = partial(torch.optim.Adam, lr=0.02)
    report = check(FlippedFeatures("residual"), data("residual"), steps=20, optimizer=fast)
    assert [finding.code for finding in report.findings] == ["BN201", "BN102"], str(report)
    assert [finding.severity for finding in report.findings] == ["error", "warning"]


@KIND
def test_a_mode_that_sticks_is_no_other_path(kind):
    """The training path is looked at as it was trained, before the first pass in eval mode."""

    class Merging(FlippedFeatures):
        merged = False

        def forward(self, x: Tensor) -> Any:
            self.merged = self.merged or not self.training
            return super().forward(x)

        def classify(self, h: Tensor) -> Tensor:
            return self.head(h.flip(1) if self.merged and self.training else h)

        features = Net.features

    model = Merging(kind)
    model.merged = False
    assert codes(check(model, data(kind), steps=150)) == ["BN306"]
    assert not model.merged


@KIND
def test_lost_updates_are_no_other_path(kind):
    class Losing(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.inner = (nn.BatchNorm1d if kind == "mlp" else nn.BatchNorm2d)(width)

        def forward(self, x: Tensor) -> Tensor:
            kept = self.inner.running_mean.clone(), self.inner.running_var.clone()
            x = self.inner(x)
            self.inner.running_mean.data.copy_(kept[0])
            self.inner.running_var.data.copy_(kept[1])
            return x

    report = check(Net(kind, norm=Losing), data(kind), steps=60)
    assert codes(report) == ["BN103"], str(report)


def test_a_layer_that_adds_little_to_a_broken_prediction_is_no_error():
    """The second layer never updates; the first lags a little behind a large learning rate."""
    model = Net("conv")
    model.blocks[1].norm.momentum = 0.0
    report = check(model, data("conv"), steps=40, optimizer=partial(torch.optim.Adam, lr=0.05))
    assert [finding.code for finding in report.findings] == ["BN103", "BN102"], str(report)
    assert [finding.severity for finding in report.findings] == ["error", "warning"]
    assert report.findings[1].layers == NORMS[:1]


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
def test_an_ignored_cause_gives_back_what_it_explained(kind):
    """Constant statistics are accepted, the broken prediction is not."""
    model, batch = Net(kind, momentum=0.0), data(kind, contrast=0.1)
    report = check(model, batch, steps=60, optimizer=FAST, ignore="BN103: constant on purpose")
    assert codes(report) == ["BN101"], str(report)
    assert suppressed(report) == {"BN103": "ignored: constant on purpose"}
    assert report.verdict == "fail"
    assert "planned_updates" not in report.findings[0].remedy  # no number of updates would help
    report = check(model, batch, steps=60, optimizer=FAST, ignore=["BN101", "BN103"])
    assert codes(report) == [], str(report)
    assert set(suppressed(report)) == {"BN101", "BN103"}
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
    design = "intended: stochastic-eval"
    assert suppressed(report) == {"BN301": design, "BN302": design}


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
    design = "intended: batch-statistics-in-eval"
    assert set(suppressed(report)) <= {"BN301", "BN303", "BN304"}
    assert set(suppressed(report).values()) == {design}
    report = check(Net(kind, norm=Adapting), data(kind), steps=150, intended="stochastic-eval")
    assert codes(report) == ["BN301"], str(report)


def deep(seed: int) -> nn.Module:
    """So deep that small distortions of many layers cost a quarter of the answers."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for _ in range(16):
        layers += [nn.Linear(64, 64, bias=False), nn.BatchNorm1d(64), nn.ReLU()]
    return nn.Sequential(nn.Linear(8, 64), *layers, nn.Dropout(0.2), nn.Linear(64, 4))


@pytest.mark.parametrize("options", [{}, {"ignore": {"BN106": "small on purpose"}}])
def test_few_values_hide_no_lag(options: Any) -> None:
    """Ignored or not: what converged statistics bring back is an error of its own."""
    model = deep(1)
    batch = torch.randn(32, 8), torch.arange(32) % 4
    optimizer = partial(torch.optim.SGD, lr=0.2, momentum=0.9)
    report = check(model, batch, steps=60, optimizer=optimizer, **options)
    assert [(f.code, f.severity) for f in report.findings] == [("BN102", "error")], str(report)

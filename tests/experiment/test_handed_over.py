"""A model that was trained elsewhere and is judged as it is (`steps=0`)."""

from __future__ import annotations

import copy
import re
import weakref
from collections import Counter
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import nn
from torch.nn import functional as F

from pytest_bncheck import InputError, check
from pytest_bncheck.adapters.base import Mode
from pytest_bncheck.adapters.torch.adapter import TorchAdapter
from pytest_bncheck.experiment.measure import DRAWS
from torch_nets import SEED, sole

SHAPES = pytest.mark.parametrize("shape", ["table", "images"])


def net(shape: str, momentum: float | None = 0.1, outputs: int = 3, **norm: Any) -> nn.Module:
    if shape == "table":
        first, second = (nn.BatchNorm1d(32, momentum=momentum, **norm) for _ in range(2))
        hidden = [nn.Linear(8, 32), first, nn.ReLU(), nn.Linear(32, 32), second, nn.ReLU()]
        return nn.Sequential(*hidden, nn.Linear(32, outputs))
    norms = [nn.BatchNorm2d(12, momentum=momentum, **norm) for _ in range(3)]
    widths = (2, 12, 12)
    layers = [
        layer
        for width, each in zip(widths, norms, strict=True)
        for layer in (nn.Conv2d(width, 12, 3, padding=1, bias=False), each, nn.GELU())
    ]
    return nn.Sequential(nn.Unflatten(1, (2, 2, 2)), *layers, nn.Flatten(), nn.Linear(48, outputs))


def data(seed: int, samples: int = 128) -> tuple[Any, Any]:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(samples, 8, generator=generator)
    classes = (inputs @ torch.randn(8, 3, generator=generator)).argmax(1)
    return 4.0 * inputs + 12.0 * torch.randn(8, generator=generator), classes


def fit(model: nn.Module, batch: Any, updates: int, rate: float = 5e-3) -> nn.Module:
    """A plain loop on the whole batch."""
    inputs, targets = batch
    loss = F.mse_loss if targets.is_floating_point() else F.cross_entropy
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    for _ in range(updates):
        optimizer.zero_grad()
        loss(model(inputs), targets).backward()
        optimizer.step()
    return model


def norms(model: nn.Module) -> list[Any]:
    return [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]


# the initial value ------------------------------------------------------------------------------


@SHAPES
@SEED
@pytest.mark.parametrize(("momentum", "updates"), [(0.01, 25), (0.002, 80)])
def test_the_initial_value_is_named(shape: str, seed: int, momentum: float, updates: int) -> None:
    torch.manual_seed(seed)
    batch = data(seed)
    model = fit(net(shape, momentum), batch, updates, 1e-2)
    report = check(model, batch, steps=0)
    finding = sole(report, "BN101")
    assert finding.severity == "error"
    true = (1.0 - momentum) ** updates
    assert finding.evidence["initial_weight"] == pytest.approx(true, abs=0.03)
    assert finding.evidence["updates"] == pytest.approx(updates, rel=0.25)
    assert f"at momentum {momentum:g}" in finding.cause
    assert str(updates) in finding.cause  # counted by the framework
    more = report.remedies.further_updates
    assert more is not None
    assert f"{more} more updates" in finding.remedy
    assert "check(model, batch, steps=0, planned_updates=...)" in finding.remedy


@SHAPES
def test_the_remedies_hold(shape: str) -> None:
    torch.manual_seed(0)
    batch = data(0)
    start = net(shape, 0.01)
    model = fit(copy.deepcopy(start), batch, 25, 1e-2)
    report = check(model, batch, steps=0)
    more, momentum = report.remedies.further_updates, report.remedies.momentum
    assert report.verdict == "fail"
    assert check(model, batch, steps=0, planned_updates=25 + more).verdict != "fail"

    waiting = copy.deepcopy(model).train()
    with torch.no_grad():
        for _ in range(more):
            waiting(batch[0])
    assert check(waiting, batch, steps=0).verdict != "fail"

    for norm in norms(start):
        norm.momentum = momentum
    assert check(fit(start, batch, 25, 1e-2), batch, steps=0).verdict != "fail"

    calm = copy.deepcopy(model)
    torch.optim.swa_utils.update_bn([batch[0]], calm)
    assert check(calm, batch, steps=0).verdict == "pass"


@SEED
@pytest.mark.parametrize("count", [None, 340])
def test_a_counter_that_was_changed_misleads_nobody(seed: int, count: int | None) -> None:
    torch.manual_seed(seed)
    batch = data(seed)
    model = fit(net("table", 0.01), batch, 25, 1e-2)
    for norm in norms(model):
        norm.num_batches_tracked = None if count is None else torch.tensor(count)
    finding = sole(check(model, batch, steps=0), "BN101")
    assert finding.evidence["initial_weight"] == pytest.approx(0.99**25, abs=0.03)
    changed = "num_batches_tracked is 340, which would leave 3.3 %"
    assert (changed in finding.cause) == (count is not None)


def test_the_group_with_most_of_its_initial_value_is_quoted() -> None:
    torch.manual_seed(0)
    batch = data(0)
    model = net("table", 0.1)
    norms(model)[1].momentum = 0.002
    finding = sole(check(fit(model, batch, 60, 1e-2), batch, steps=0), "BN101")
    assert "momentum 0.002" in finding.cause
    assert finding.evidence["initial_weight"] == pytest.approx(0.998**60, abs=0.03)


def test_fewer_planned_updates_than_were_made_are_refused() -> None:
    torch.manual_seed(0)
    batch = data(0)
    model = fit(net("table", 0.01), batch, 25, 1e-2)
    with pytest.raises(InputError, match=r"^planned_updates: 20 is less than the 2\d updates that"):
        check(model, batch, steps=0, planned_updates=20)


# other causes -----------------------------------------------------------------------------------


@SHAPES
@SEED
@pytest.mark.parametrize("affine", [True, False])
def test_parameters_without_statistics(shape: str, seed: int, affine: bool) -> None:
    torch.manual_seed(seed)
    batch = data(seed)
    source = fit(net(shape, affine=affine), batch, 200)
    copied = net(shape, affine=affine)
    copied.load_state_dict(dict(source.named_parameters()), strict=False)
    report = check(copied, batch, steps=0)
    assert {finding.code for finding in report.findings} == {"BN401"}
    assert "exactly 0 and 1" in report.findings[0].message
    assert not check(source, batch, steps=0).findings


@SEED
@pytest.mark.parametrize("momentum", [0.01, None])
def test_statistics_that_trail_the_weights(seed: int, momentum: float | None) -> None:
    torch.manual_seed(seed)
    batch = data(seed)
    model = fit(net("images", momentum), batch, 460 if momentum else 60, 1e-3)
    fit(model, batch, 40, 5e-2)
    report = check(model, batch, steps=0)
    if report.bn_verdict == "broken":
        finding = sole(report, "BN102")
        assert "is not the initial value" in finding.cause
        memory = "a cumulative average" if momentum is None else "momentum 0.01"
        assert memory in finding.cause
    else:
        assert "BN101" not in {finding.code for finding in report.findings}


@SEED
@pytest.mark.parametrize("kind", ["momentum 0", "bfloat16"])
def test_statistics_that_no_update_moves(seed: int, kind: str) -> None:
    torch.manual_seed(seed)
    inputs, classes = data(seed)
    model = net("table", 0.0 if kind == "momentum 0" else 0.01)
    if kind == "bfloat16":
        model, inputs = model.bfloat16(), inputs.bfloat16()
    report = check(fit(model, (inputs, classes), 400), (inputs, classes), steps=0)
    finding = sole(report, "BN103")
    assert finding.severity == "error"
    says = "At momentum 0 a batch has no weight" if kind == "momentum 0" else "in bfloat16"
    assert says in finding.cause
    assert {layer.updates for layer in report.layers} == {400}


@SHAPES
@pytest.mark.parametrize(("scale", "words"), [(10.0, "divide them by"), (0.1, "multiply them by")])
def test_inputs_on_another_scale(shape: str, scale: float, words: str) -> None:
    torch.manual_seed(0)
    batch = data(0)
    model = fit(net(shape), batch, 150)
    finding = sole(check(model, (scale * batch[0], batch[1]), steps=0), "BN401")
    look = re.search(r"these inputs look ([\d.]+) times as large", finding.cause)
    assert look is not None
    assert float(look[1]) == pytest.approx(scale, rel=0.05)
    assert words in finding.remedy


@SEED
def test_several_labels_each(seed: int) -> None:
    """Zeros and ones in several columns are labels where the outputs are logits of them."""
    torch.manual_seed(seed)
    inputs, classes = data(seed)
    labels = torch.stack([classes == 0, classes != 1, inputs[:, 0] > inputs[:, 1]], dim=1).float()
    model = net("table", 0.01)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(30):
        optimizer.zero_grad()
        F.binary_cross_entropy_with_logits(model(inputs), labels).backward()
        optimizer.step()
    report = check(model, (inputs, labels), steps=0)
    assert sole(report, "BN101").severity == "error"
    entropy = F.binary_cross_entropy_with_logits(model(inputs), labels).item()
    assert report.predictions.train.loss == pytest.approx(entropy, rel=1e-4)


@SEED
def test_a_shortcut_through_batches_of_one(seed: int) -> None:
    torch.manual_seed(seed)
    labels = torch.arange(16) % 4
    images = torch.rand(4, 1, 8, 8)[labels] + 0.1 * torch.randn(16, 1, 8, 8)
    images *= 10 ** torch.linspace(-1.5, 1.5, 16)[torch.randperm(16)].view(-1, 1, 1, 1)
    layers = [nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3)]
    tail = [nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(128, 4)]
    model = nn.Sequential(*layers, *tail)
    ones = [(images[k : k + 1], labels[k : k + 1]) for k in range(16)]
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    for _ in range(40):
        for one in ones:
            optimizer.zero_grad()
            F.cross_entropy(model(one[0]), one[1]).backward()
            optimizer.step()
    assert sole(check(model, batches=ones[8:], steps=0), "BN109").severity == "error"


# healthy ----------------------------------------------------------------------------------------


@SEED
@pytest.mark.parametrize("samples", [8, 16, 64])
def test_a_regression_on_a_small_batch_is_healthy(seed: int, samples: int) -> None:
    """A single batch is one draw: its own statistics predict worse than the running ones."""
    torch.manual_seed(seed)
    inputs = torch.randn(512, 8)
    targets = inputs[:, :1] * 2 + inputs[:, 1:2] ** 2
    model = net("table", outputs=1)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(400):
        rows = torch.randint(0, 512, (64,))
        optimizer.zero_grad()
        F.mse_loss(model(inputs[rows]), targets[rows]).backward()
        optimizer.step()
    report = check(model, (inputs[:samples], targets[:samples]), steps=0)
    assert not report.findings, str(report)


@SEED
def test_a_small_batch_of_what_cannot_be_learnt_is_no_error(seed: int) -> None:
    """Where nothing was learnt, the batch's own statistics fit its own targets by chance."""
    torch.manual_seed(seed + 2)
    inputs, targets = torch.randn(512, 8), torch.randn(512, 1)
    model = net("table", outputs=1)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(150):
        rows = torch.randint(0, 512, (64,))
        optimizer.zero_grad()
        F.mse_loss(model(inputs[rows]), targets[rows]).backward()
        optimizer.step()
    for samples in (4, 8, 32):
        report = check(model, (inputs[:samples], targets[:samples]), steps=0)
        found = {(finding.code, finding.severity) for finding in report.findings}
        assert found <= {("BN106", "warning")}, str(report)


@SHAPES
@SEED
def test_a_trained_classifier_is_healthy(shape: str, seed: int) -> None:
    torch.manual_seed(seed)
    batch = data(seed)
    model = fit(net(shape), batch, 150)
    report = check(model, batch, steps=0)
    assert report.verdict == "pass"
    assert {layer.updates for layer in report.layers} == {150}
    assert not check(model, (batch[0][:16], batch[1][:16]), steps=0).findings


@SHAPES
def test_normalisation_that_is_frozen_at_the_identity(shape: str) -> None:
    torch.manual_seed(0)
    batch = data(0)
    model = net(shape)
    for norm in norms(model):
        norm.eval()
    fit(model, batch, 150)
    assert not check(model, batch, steps=0).findings
    model.eval()
    assert not check(model, batch, steps=0).findings


@SHAPES
@pytest.mark.parametrize("scale", [0.0, 0.5])
def test_a_new_net_has_lost_nothing(shape: str, scale: float) -> None:
    torch.manual_seed(0)
    model = net(shape)
    for norm in norms(model):
        nn.init.constant_(norm.weight, scale)
    inputs, _ = data(0, 32)
    assert not check(model, (inputs, torch.arange(32) % 3), steps=0).findings


# what is asked for, and what is left alone ------------------------------------------------------


@pytest.mark.parametrize("form", ["tensor", "tuple", "pair"])
def test_no_loss_is_asked_for(form: str) -> None:
    torch.manual_seed(0)
    inputs = torch.randn(16, 8)
    batch = {"tensor": inputs, "tuple": (inputs,), "pair": (inputs, torch.zeros(16, 5, 2))}[form]
    model = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), nn.Linear(8, 3))
    assert check(model, batch, steps=0).verdict == "pass"
    assert sole(check(nn.Sequential(model, Sampling()), batch, steps=0), "BN302")


class Sampling(nn.Module):
    def forward(self, x: Any) -> Any:
        return F.dropout(x, 0.5)


@pytest.mark.parametrize("steps", [0, 2])
def test_a_batch_of_inference_mode(steps: int) -> None:
    with torch.inference_mode():
        inputs, labels = torch.randn(16, 8), torch.arange(16) % 3
    assert check(net("table"), (inputs, labels), steps=steps).error is None
    assert inputs.is_inference()


@pytest.mark.parametrize("steps", [0, 2])
def test_a_model_that_points_to_itself_weakly(steps: int) -> None:
    model, helper = net("table"), Helper()
    helper.model = weakref.proxy(model)
    model.helper = helper
    before = copy.deepcopy(model.state_dict())
    assert check(model, data(0, 16), steps=steps).error is None
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


class Helper:
    model: Any


@SHAPES
@pytest.mark.parametrize("samples", [1, 2])
def test_a_batch_too_small_to_judge_by(shape: str, samples: int) -> None:
    torch.manual_seed(0)
    batch = data(0)
    for model in (fit(net(shape, 0.01), batch, 25, 1e-2), fit(net(shape), batch, 150)):
        report = check(model, (batch[0][:samples], batch[1][:samples]), steps=0)
        text = str(report)
        assert "000" not in text
        assert "training batch" not in text
        assert all(layer.updates in (25, 150) for layer in report.layers)
        if shape == "table" and samples == 1:
            finding = sole(report, "BN106")
            assert finding.severity == "warning"
            assert "a single value per channel" in finding.message


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_layers_of_a_finished_program_are_not_seen() -> None:
    model = torch.jit.trace(net("table").eval(), data(0, 16)[0], check_trace=False)
    report = check(model, data(0, 16), steps=0)
    assert "finished program, whose layers cannot be looked into" in " ".join(str(report).split())
    assert report.to_dict()["modes"] == "hidden"


def test_looking_for_chance_is_one_of_the_draws(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, modes = fit(nn.Sequential(net("table"), nn.Dropout(0.5)), data(0), 150), Counter()
    run = TorchAdapter.run

    def counted(adapter: Any, index: int, mode: Mode, **options: Any) -> Any:
        modes[mode] += 1
        return run(adapter, index, mode, **options)

    monkeypatch.setattr(TorchAdapter, "run", counted)
    assert check(model, data(0), steps=0).error is None
    assert modes[Mode.TRAINING] in (1, DRAWS)

"""Normalisation of a user's own in Keras: what it does decides, not what it is called."""

from __future__ import annotations

import contextlib
import math

import numpy as np
import pytest

keras = pytest.importorskip("keras")

from keras_nets import (
    KIND,
    NORMS,
    data,
    differentiated,
    fast,
    functional,
    net,
    run,
    silent,
    sole,
)
from keras_norms import Debiased, Every4, InList, OwnDropout, RangeNorm, Scheduled, wrapped
from keras_steps import Inside
from pytest_bncheck import check

ON_TORCH = keras.backend.backend() == "torch"
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


SLOW, STEPS = 0.995, 40
"""So that most of the initial value is left, and eval mode decides badly."""


def own(momentum):
    return lambda name: RangeNorm(momentum, name=name)


def rates(report):
    return [layer.update_rate for layer in report.layers]


@KIND
def test_statistics_under_other_names(kind):
    report = run(net(kind, 0, own(SLOW)), kind, 0, steps=STEPS)
    finding = sole(report, "BN101")
    assert finding.severity == "error"
    assert sorted(finding.layers) == NORMS[kind]
    assert finding.evidence["initial_weight"] == pytest.approx(SLOW**STEPS, abs=0.02)
    assert rates(report) == pytest.approx([0.005, 0.005], rel=0.02)
    assert "where RangeNorm updates its running statistics" in finding.remedy
    assert "BatchNormalization(" not in finding.remedy


@KIND
def test_statistics_under_other_names_that_have_settled(kind):
    report = run(net(kind, 0, own(0.9)), kind, 0)
    silent(report)
    assert rates(report) == pytest.approx([0.1, 0.1], rel=0.02)


@KIND
def test_statistics_whose_rate_follows_a_schedule(kind):
    report = run(net(kind, 0, lambda name: Scheduled(name=name)), kind, 0, steps=STEPS)
    left = math.prod(1 - 0.1 * 0.95**k for k in range(STEPS))
    assert [layer.initial_weight for layer in report.layers] == pytest.approx([left] * 2, abs=0.02)
    assert rates(report) == pytest.approx([0.1 * 0.95**STEPS] * 2, rel=0.02)


@KIND
@pytest.mark.parametrize("momentum", [0.9, 0.999])
def test_averages_that_inference_frees_of_their_start(kind, momentum):
    report = run(net(kind, 0, lambda name: Debiased(momentum, name=name)), kind, 0)
    silent(report)
    assert rates(report) == pytest.approx([1 - momentum] * 2, rel=0.02)


def test_statistics_in_variables_that_keras_does_not_track():
    model = functional(lambda name: InList(SLOW, name=name), None)
    finding = sole(run(model, "functional", 0, steps=STEPS), "BN101")
    assert finding.evidence["initial_weight"] == pytest.approx(SLOW**STEPS, abs=0.02)


@KIND
def test_statistics_that_move_at_every_fourth_call(kind):
    model = net(kind, 0, lambda name: Every4(momentum=0.97, name=name))
    report = run(model, kind, 0, steps=20)
    finding = sole(report, "BN101")
    assert finding.evidence["initial_weight"] == pytest.approx(0.97**5, abs=0.02)
    assert rates(report) == pytest.approx([0.03, 0.03], rel=0.02)


@pytest.mark.parametrize(("momentum", "steps"), [(SLOW, STEPS), (0.9, 100)])
def test_batch_normalisation_of_pytorch_inside(momentum, steps):
    if not ON_TORCH:
        pytest.skip("on Keras' torch backend only")
    model = functional(lambda name: wrapped(name, momentum), None)
    report = run(model, "functional", 0, steps=steps)
    if momentum == 0.9:
        silent(report)
    else:
        finding = sole(report, "BN101")
        assert finding.evidence["initial_weight"] == pytest.approx(SLOW**STEPS, abs=0.02)
        assert "`running_mean`, `running_var`" in finding.cause
    assert rates(report)[0] == pytest.approx(1.0 - momentum, rel=0.02)


@pytest.mark.parametrize("momentum", [SLOW, 0.9])
def test_a_step_that_alone_knows_the_mode_of_an_own_norm(momentum):
    """The model's call takes no mode; its train_step passes it to the net inside."""
    batch = data("functional", 0)
    model = Inside(functional(own(momentum), None))
    model(batch[0])
    model.compile(fast(), LOSS)
    report = check(model, batch, steps=STEPS if momentum == SLOW else 100)
    if momentum == 0.9:
        silent(report)
    else:
        sole(report, "BN101")
    assert rates(report) == pytest.approx([1.0 - momentum] * 2, rel=0.02)


@pytest.mark.parametrize("seed", [23, 31])
@pytest.mark.parametrize("momentum", [0.98, 0.5])
def test_what_an_own_layer_draws_hides_no_fault(seed, momentum):
    """Dropout by hand beside an own norm: it was a pass with a gap of 0."""
    drawn = np.random.default_rng(seed)
    centres, labels = drawn.normal(size=(4, 8)), drawn.integers(0, 4, 32)
    inputs = (centres[labels] + drawn.normal(size=(32, 8)) + 2.0).astype("float32")
    keras.utils.set_random_seed(0)
    dense, relu = keras.layers.Dense, keras.layers.ReLU
    parts = [dense(32), RangeNorm(momentum, name="own"), relu(), OwnDropout(0.6), dense(32), relu()]
    model = keras.Sequential([keras.Input((8,)), *parts, dense(4)])
    report = check(model, (inputs, labels), steps=60, optimizer=fast(3e-3), loss=LOSS)
    assert rates(report) == pytest.approx([1.0 - momentum], rel=0.02)
    if momentum == 0.5:
        assert report.verdict == "pass"
    else:
        assert report.predictions.gap > 0.3
        assert sole(report, "BN101").layers == ["own"]


@pytest.mark.parametrize("seed", [0, 1])
def test_renormalisation_whose_modes_meet_takes_no_other_path(seed):
    bounds = {"rmax": 1.5, "rmin": 0.66, "dmax": 0.5}
    model = net(
        "functional",
        seed,
        lambda name: keras.layers.BatchNormalization(
            momentum=0.98, renorm=True, renorm_clipping=bounds, renorm_momentum=0.98, name=name
        ),
    )
    report = run(model, "functional", seed, steps=60)
    assert "BN201" not in [finding.code for finding in report.findings]


class PredictsByTeacher(keras.Model):
    """The step trains the student beside its teacher, which alone predicts."""

    def __init__(self, decay):
        super().__init__()
        self.student, self.teacher = (functional(own(0.9), None) for _ in range(2))
        self.teacher.set_weights(self.student.get_weights())
        self.teacher.trainable = False
        self.decay = decay

    def call(self, x, training=None):
        return self.teacher(x, training=training)

    def step(self, x, y):
        def losses():
            taught, logits = self.teacher(x, training=False), self.student(x, training=True)
            apart = keras.ops.mean((logits - keras.ops.stop_gradient(taught)) ** 2)
            return LOSS(y, logits) + 0.01 * apart

        loss, gradients = differentiated(losses, self.student)
        with without_gradients():
            self.optimizer.apply(gradients, self.student.trainable_variables)
            for mine, theirs in zip(self.teacher.weights, self.student.weights, strict=True):
                mine.assign(self.decay * mine + (1.0 - self.decay) * theirs)
        return loss


def without_gradients():
    if not ON_TORCH:
        return contextlib.nullcontext()
    import torch

    return torch.no_grad()


@pytest.mark.parametrize(("decay", "code"), [(0.999, "BN201"), (0.0, "BN202")])
def test_a_teacher_that_predicts(decay, code):
    batch = data("functional", 0)
    model = PredictsByTeacher(decay)
    model(batch[0])
    model.compile(fast(), LOSS)
    report = check(model, batch, steps=40, train_step=lambda model, pair: model.step(*pair))
    finding = sole(report, code)
    student, teacher = (each.name for each in (model.student, model.teacher))
    assert all(name.startswith(student) for name in finding.evidence["trained"])
    assert all(name.startswith(teacher) for name in finding.evidence["predicts"])

"""The contract of an adapter as checks: each breach of a toy adapter is named."""

from __future__ import annotations

import abc
import dataclasses
import random
from typing import get_args

import numpy as np
import pytest

from pytest_bncheck import InputError
from pytest_bncheck.adapters.base import NO_CALLS, NO_STATISTICS, Mode, Pass, Stateful
from pytest_bncheck.rules import RULES
from pytest_bncheck.testing import Conformance, check_adapter, reachable
from pytest_bncheck.testing.checks import CHECKS
from pytest_bncheck.types import Capability, Statistics
from toy import ToyAdapter, ToyModel, cross_entropy, toy_batch


def batch():
    return toy_batch(seed=np.random.randint(100))


def conformance(adapter=ToyAdapter, make_model=ToyModel, **options):
    return check_adapter(make_model, batch, adapter=adapter, **{"loss": cross_entropy, **options})


def train_step(model, batch):
    inputs, labels = batch
    loss, gradient = cross_entropy(model(inputs), labels)
    model.bias = model.bias - gradient.sum(0)
    return loss


# what keeps the contract --------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"loss": None}, {"steps": 2}, {"steps": 7}])
def test_the_toy_adapter_keeps_it(options):
    found = conformance(**options)
    assert found.passed == tuple(CHECKS)
    assert not found.skipped


def test_functions_of_the_user_s_raise_too():
    forward = ToyModel.__call__
    found = conformance(loss=None, forward=lambda model, batch: forward(model, batch[0]))
    assert not found.skipped


def test_what_these_models_cannot_show_is_skipped_with_its_reason():
    found = conformance(loss=None, train_step=train_step)
    assert found.skipped == {"restore after an error in a pass": "no code of the user's runs there"}


def test_the_result_names_what_is_not_offered():
    found = conformance()
    assert found.adapter == "ToyAdapter"
    assert found.offers == {"sampling"}
    assert found.silent.keys() == {
        code for code, rule in RULES.items() if rule.needs - {"sampling"}
    }
    assert found.silent["BN108"] == ("streams",)
    text = str(found)
    missing = "watching, streams, replicas, slopes, moving state, rehearsal"
    assert f"\nIt does not offer: {missing}.\n" in text
    assert "\n  BN108 mixed-streams needs streams\n" in text


def test_an_adapter_of_everything_has_no_silent_rule():
    every = frozenset(get_args(Capability))
    assert str(Conformance("All", ("a",), {"b": "why"}, every)).splitlines() == [
        "All keeps the contract:",
        "  passed: a",
        "  skipped: b (why)",
        "It offers all capabilities, so no rule stays silent.",
    ]


def test_without_an_adapter_there_is_nothing_to_check():
    with pytest.raises(InputError, match="cannot check a model of type toy"):
        check_adapter(ToyModel, batch)
    with pytest.raises(InputError, match="must return a subclass"):
        check_adapter(ToyModel, batch, adapter=ToyModel)
    with pytest.raises(ValueError, match="steps must be >= 2, got 1"):
        conformance(steps=1)


def test_another_error_says_which_check_it_came_from():
    class Fails(ToyAdapter):
        def write(self, statistics, *, exact=False):
            raise OSError("no room")

    with pytest.raises(OSError, match="no room") as failure:
        conformance(Fails)
    notes = failure.value.__notes__
    assert notes == ["pytest-bncheck: raised in the check of 'write(read()) changes nothing'."]


# the state of a model -----------------------------------------------------------------------------


def test_everything_that_a_model_leads_to_is_seen():
    model = ToyModel()
    model.parts = [{"mode": "train", "scale": np.float32([1, 2])}, (model, None)]
    found = reachable(model)
    assert found["model.training"] is True
    assert found["model.parts[0]['mode']"] == "train"
    assert found["model.parts[1][1]"] is None
    np.testing.assert_array_equal(found["model.parts[0]['scale']"], [1, 2])
    model.mean += 1.0
    np.testing.assert_array_equal(found["model.mean"], 0.0)


# what breaks it -----------------------------------------------------------------------------------

BROKEN = []


def broken(message, make_model=ToyModel, **options):
    """A toy adapter that breaks the contract, and how the message begins."""

    def known(adapter):
        BROKEN.append(pytest.param(adapter, make_model, options, message, id=adapter.__name__))
        return adapter

    return known


def scaled(statistics, factor):
    return Statistics(statistics.mean, tuple(factor * var for var in statistics.var))


N = 24  # samples in a batch of toys
BESSEL = N / (N - 1)


@broken("write: is missing")
class LacksAMember(ToyAdapter):
    write = abc.abstractmethod(ToyAdapter.write)


@broken("framework: is None")
class HasNoName(ToyAdapter):
    framework = None


@broken("layers: names are ['norm', 'norm']")
class NamesTwice(ToyAdapter):
    def layers(self):
        return super().layers() * 2


@broken("layers: update_rate of 'norm' is 1.5")
class RateTooLarge(ToyAdapter):
    def layers(self):
        return [dataclasses.replace(layer, update_rate=1.5) for layer in super().layers()]


@broken("dialect: momentum_of(0.1) is 0.9, and 'norm' with this update_rate has momentum 0.1")
class SpeaksAnother(ToyAdapter):
    dialect = dataclasses.replace(ToyAdapter.dialect, momentum_of=lambda rate: 1 - rate)


@broken("read(exact=False): gave 0 means and 0 variances for 1 layers")
class ReadsNothing(ToyAdapter):
    def read(self, *, exact=False):
        return NO_STATISTICS


@broken("read(exact=False): gave an array of float64 and shape (1, 4) as mean")
class ReadsOtherShapes(ToyAdapter):
    def read(self, *, exact=False):
        return Statistics((self.model.mean[None],), (self.model.var[None],))


@broken("run(0, Mode.EVAL): gave no prediction")
class PredictsNothing(ToyAdapter):
    def run(self, index, mode, *, observe=True):
        return Pass(None) if mode is Mode.EVAL else super().run(index, mode)


@broken("run(0, Mode.EVAL): gave an object of type list as 'output' for a batch of 24")
class PredictsLists(ToyAdapter):
    def _prediction(self, index):
        found = super()._prediction(index)
        return dataclasses.replace(found, outputs={"output": found.outputs["output"].tolist()})


@broken("run(0, Mode.EVAL): gave an object of type str as loss")
class LossIsText(ToyAdapter):
    def _prediction(self, index):
        return dataclasses.replace(super()._prediction(index), loss="1.5")


@broken("run(0, Mode.BATCH_STATISTICS): gave Calls(training=(), inference=(), values=())")
class CountsNothing(ToyAdapter):
    def run(self, index, mode, *, observe=True):
        return dataclasses.replace(super().run(index, mode), calls=NO_CALLS)


@broken("losses: are ()")
class LosesLosses(ToyAdapter):
    losses = ()


@broken("losses: are [nan, nan, nan]", loss=lambda *args: (float("nan"), cross_entropy(*args)[1]))
class LossIsNoNumber(ToyAdapter):
    pass


@broken("history: has 3 entries after 3 steps")
class HistoryLacksItsStart(ToyAdapter):
    @property
    def history(self):
        return super().history[1:]


@broken("history: differs in its last entry from what read() gives after the last step")
class HistoryIsLate(ToyAdapter):
    @property
    def history(self):
        found = super().history
        return [*found[:1], *found[:-1]]


@broken("calls: has training=(1,) after 3 steps")
class CountsOneStep(ToyAdapter):
    @property
    def calls(self):
        return self._calls_in_pass


@broken("layers: were ['norm'] before training and ['norm3'] after it")
class RenamesLayers(ToyAdapter):
    def layers(self):
        name = f"norm{len(self.losses) or ''}"
        return [dataclasses.replace(layer, name=name) for layer in super().layers()]


@broken("step: a second training of an equal model with the same seed gave other losses")
class DrawsItsOwn(ToyAdapter):
    def step(self, index):
        self.model.weight = self.model.weight * random.SystemRandom().random()
        return super().step(index)


@broken("run(0, Mode.TRAINING): changed the running statistics")
class PassMovesStatistics(ToyAdapter):
    def run(self, index, mode, *, observe=True):
        if mode is Mode.TRAINING:
            self.model.mean = self.model.mean + 1.0
        return super().run(index, mode)


@broken("run(0, Mode.TRAINING_PATH): changed the model: model.bias holds other numbers than before")
class PassMovesWeights(ToyAdapter):
    def run(self, index, mode, *, observe=True):
        if mode is Mode.TRAINING_PATH:
            self.model.bias = self.model.bias + 1.0
        return super().run(index, mode)


@broken("train_from(0): changed the running statistics")
class TrainsForGood(ToyAdapter, Stateful):
    def states(self):
        return []

    def train_from(self, index, states=None, *, passes=1, draw=None):
        self.model.mean = self.model.mean + 1.0

    def adopt(self, found):
        pass


@broken("run(0, Mode.EVAL): changed what eval mode predicts")
class PassMovesTheAdapter(ToyAdapter):
    passes = 0

    def _prediction(self, index):
        self.passes += bool(self.losses)
        found = super()._prediction(index)
        return dataclasses.replace(
            found, outputs={"output": found.outputs["output"] + self.passes // 2}
        )


@broken("write: of a var of 'norm', and read(exact=False) gave another")
class WritesNoVariance(ToyAdapter):
    def write(self, statistics, *, exact=False):
        self.model.mean = statistics.mean[0]


@broken("write: of what read(exact=True) gave changed what eval mode predicts")
class ReadsExactAsStored(ToyAdapter):
    exact = None

    def read(self, *, exact=False):
        return scaled(super().read(), 1.0) if not exact else self.exact or scaled(super().read(), 4)

    def write(self, statistics, *, exact=False):
        self.exact = statistics if exact else None
        super().write(statistics)


def flipped(layer):
    return dataclasses.replace(layer, momentum=0.9, update_rate=0.9)


@broken(
    "layers: says that update_rate of 'norm' is 0.9, and its running statistics moved as with 0.1"
)
class TakesMomentumForTheRate(ToyAdapter):
    def layers(self):
        return list(map(flipped, super().layers()))


@broken("layers: says that update_rate of 'norm' is 0.3, and its running mean moved as with 0.1")
class SaysAnotherRate(ToyAdapter):
    def layers(self):
        return [
            dataclasses.replace(layer, momentum=0.3, update_rate=0.3) for layer in super().layers()
        ]


@broken("history: shows that the running mean of 'norm' moved, but not towards the batch mean")
class TakesTheFirstBatch(ToyAdapter):
    def run(self, index, mode, *, observe=True):
        return super().run(0, mode)


class Unbiased(ToyModel):
    """Stores the unbiased variance."""

    def normalise(self, inputs):
        before, found = self.var, super().normalise(inputs)
        if self.training:
            self.var = before + self.update_rate * (inputs.var(0, ddof=1) - before)
        return found


@broken("read: gives a variance of 'norm' that is n/(n-1) times too large, n=24", Unbiased)
class ReadsTheUnbiased(ToyAdapter):
    pass


@broken("run: gives a variance of 'norm' that is n/(n-1) times too large, n=24")
class RunsTheUnbiased(ToyAdapter):
    def run(self, index, mode, *, observe=True):
        found = super().run(index, mode)
        return dataclasses.replace(found, statistics=scaled(found.statistics, BESSEL))


class OtherVariance(ToyModel):
    def normalise(self, inputs):
        before, found = self.var, super().normalise(inputs)
        if self.training:
            self.var = before + 2 * self.update_rate * (inputs.var(0) - before)
        return found


@broken("history: shows that the variance of 'norm' moved from", OtherVariance)
class VarianceMovesOtherwise(ToyAdapter):
    pass


@broken(
    "write: did not make eval mode repeat the training prediction; the variance is off by n/(n-1)"
)
class WritesTheUnbiased(ToyAdapter):
    def read(self, *, exact=False):
        return scaled(super().read(), 1 / BESSEL if exact else 1.0)

    def write(self, statistics, *, exact=False):
        super().write(scaled(statistics, BESSEL if exact else 1.0))


@broken("write: did not make eval mode repeat the training prediction.")
class NormalisesWithOthers(ToyAdapter):
    def _prediction(self, index):
        found = super()._prediction(index)
        shift = 0.0 if self.model.training else 1.0
        return dataclasses.replace(found, outputs={"output": found.outputs["output"] + shift})


class Forgetful(ToyAdapter):
    """Restores all but some attributes."""

    forgets = ()

    def restore(self, *, keep_weights=False):
        kept = {name: vars(self.model)[name] for name in self.forgets}
        super().restore(keep_weights=keep_weights)
        vars(self.model).update(kept)


@broken(
    "restore: left the model changed after training and passes: model.weight holds other numbers"
)
class ForgetsWeights(Forgetful):
    forgets = ("weight",)


@broken("restore: left the model changed after training and passes: model.var holds other numbers")
class ForgetsStatistics(Forgetful):
    forgets = ("var",)


@broken(
    "restore: left the model changed after training and passes: "
    "model.training is False and was True"
)
class ForgetsModes(Forgetful):
    forgets = ("training",)


@broken("restore: left the model changed though nothing was done: model.training is False")
class LeavesEvalMode(ToyAdapter):
    def restore(self, *, keep_weights=False):
        super().restore(keep_weights=keep_weights)
        self.model.training = False


@broken(
    "restore: a second check of the same model gave other losses, predictions",
    state=lambda model: {"mean": model.mean.copy()},
)
class ForgetsWhatIsOutOfSight(Forgetful):
    forgets = ("weight",)


@broken("step: trained, and no array of the model's state changed", state=lambda model: {})
class ShowsNoState(ToyAdapter):
    pass


@broken("restore(keep_weights=True): lost what was trained: model.weight holds other numbers")
class LosesTrainedWeights(ToyAdapter):
    def restore(self, *, keep_weights=False):
        super().restore()


@broken("restore(keep_weights=True): left a mode: model.training is False and was True")
class KeepsModes(ToyAdapter):
    def restore(self, *, keep_weights=False):
        if not keep_weights:
            super().restore()


class Careless(ToyAdapter):
    """Does not restore after an error in some method."""

    failed = False

    def careless(self, method, *args):
        self.failed = True
        found = method(*args)
        self.failed = False
        return found

    def restore(self, *, keep_weights=False):
        if not self.failed:
            super().restore(keep_weights=keep_weights)


@broken("restore: left the model changed after an error in a training step: model.")
class FailsInAStep(Careless):
    def step(self, index):
        return self.careless(super().step, index)


@broken("restore: left the model changed after an error in a pass: model.")
class FailsInAPass(Careless):
    def run(self, index, mode, *, observe=True):
        return self.careless(super().run, index, mode)


@pytest.mark.parametrize(("adapter", "make_model", "options", "message"), BROKEN)
def test_a_breach_is_named(adapter, make_model, options, message):
    with pytest.raises(AssertionError) as failure:
        conformance(adapter, make_model, **options)
    breach, _, contract = str(failure.value).partition("\n")
    assert breach.startswith(f"{adapter.__name__}.{message}")
    assert contract.startswith("The contract: ")

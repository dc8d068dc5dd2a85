"""What a check of a Flax model finds, and that it leaves the model as it was."""

import jax
import numpy as np
import optax
import pytest
from flax import nnx
from model import Net
from nnx_adapter import NNXAdapter

from pytest_bncheck import CheckFailed, InputError
from pytest_bncheck.testing import check_adapter


@pytest.mark.bn_consistency
def test_net(bncheck_report):
    assert bncheck_report.framework == "flax"
    assert bncheck_report.predictions.eval.accuracy == 1


def test_short_training_with_a_long_memory_is_caught(bncheck, bncheck_batch):
    with pytest.raises(CheckFailed, match="After 5 updates at") as failure:
        bncheck(Net(momentum=0.99), bncheck_batch, steps=5, optimizer=lambda _: optax.adam(1e-1))
    (finding,) = failure.value.report.findings
    assert (finding.code, finding.layers) == ("BN101", ["norm"])
    assert "nnx.BatchNorm(..., momentum=" in finding.remedy
    assert failure.value.report.remedies.recalibrates


def test_the_same_model_passes_with_its_planned_updates(bncheck, bncheck_batch):
    report = bncheck(Net(momentum=0.99), bncheck_batch, steps=30, planned_updates=2000)
    assert report.verdict == "pass"


@pytest.mark.parametrize("design", [{"momentum": 0.9, "dropout": 0.1}, {"norm": nnx.LayerNorm}])
def test_healthy_designs_pass(bncheck, bncheck_batch, design):
    report = bncheck(Net(**design), bncheck_batch, steps=100)
    assert report.verdict == "pass", str(report)


def test_batch_statistics_in_eval_mode_are_caught(bncheck, bncheck_batch):
    class Stuck(Net):
        def __call__(self, x):
            return self.out(nnx.relu(self.norm(self.hidden(x), use_running_average=False)))

    with pytest.raises(CheckFailed) as failure:
        bncheck(Stuck(), bncheck_batch, steps=40)
    assert failure.value.report.findings[0].code in ("BN301", "BN303")


def test_a_step_of_the_user_s_own(bncheck, bncheck_batch):
    net = Net(momentum=0.9)
    optimizer = nnx.Optimizer(net, optax.adam(1e-2), wrt=nnx.Param)

    def train_step(model, batch):
        inputs, labels = batch
        graph, parameters, rest = nnx.split(model, nnx.Param, ...)

        def loss_of(parameters):
            copy = nnx.merge(graph, parameters, rest, copy=True)
            losses = optax.softmax_cross_entropy_with_integer_labels(copy(inputs), labels)
            return losses.mean(), nnx.state(copy, nnx.BatchStat)

        (loss, statistics), gradients = jax.value_and_grad(loss_of, has_aux=True)(parameters)
        nnx.update(model, statistics)
        optimizer.update(model, gradients)
        return loss

    assert bncheck(net, bncheck_batch, steps=60, train_step=train_step).ok


def test_the_model_is_left_as_it_was(bncheck, bncheck_batch):
    net = Net(momentum=0.9, dropout=0.1)
    net.norm.use_running_average = True
    before = leaves(net)
    bncheck(net, bncheck_batch, steps=20)
    assert all(map(np.array_equal, before, leaves(net)))
    assert net.norm.use_running_average is True


def leaves(net):
    """Every array of a model; keys of random generators as their numbers."""
    found = jax.tree.leaves(nnx.state(net))
    keys = [jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key) for leaf in found]
    return [
        np.array(jax.random.key_data(leaf) if is_key else leaf)
        for leaf, is_key in zip(found, keys, strict=True)
    ]


def test_a_device_that_is_not_there(bncheck, bncheck_batch):
    with pytest.raises(InputError, match="JAX runs on"):
        bncheck(Net(), bncheck_batch, device="tpu:7")


SAID = """\
NNXAdapter keeps the contract:
  passed: the required members are there
  passed: losses, history and calls fit the steps
  passed: the same seed gives the same numbers
  passed: passes change nothing
  passed: write(read()) changes nothing
  passed: history obeys the recursion
  passed: write(batch statistics, exact=True) repeats the training prediction
  passed: restore after success
  passed: restore with keep_weights
  passed: restore after an error in a step
  passed: restore after an error in a pass
It does not offer: watching, sampling, streams, replicas, slopes, moving state, rehearsal.
These rules stay silent:
  BN108 mixed-streams needs streams
  BN109 batch-shortcut needs sampling
  BN303 eval-depends-on-batch needs sampling
  BN305 trained-in-eval-mode needs watching
  BN306 mode-sticks needs watching
  BN402 replicas-diverge needs replicas
"""


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_the_adapter_keeps_the_contract(dropout):
    def make_model():
        return Net(momentum=0.9, dropout=dropout)

    def make_batch():
        return np.random.normal(5.0, 3.0, (16, 8)).astype("float32"), np.arange(16) % 4

    assert f"{check_adapter(make_model, make_batch, adapter=NNXAdapter)}\n" == SAID

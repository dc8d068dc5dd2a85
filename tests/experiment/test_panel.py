"""Several mini-batches judged as one."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import pytest

from pytest_bncheck.experiment.panel import Panel, joined
from pytest_bncheck.maths import distances, running
from pytest_bncheck.maths.dealing import deal
from pytest_bncheck.types import Prediction, Recipe, Statistics
from toy import ToyAdapter, ToyModel, toy_batch


def prediction(size: int, loss: float, accuracy: float | None = None) -> Prediction:
    return Prediction({"output": np.full((size, 2), loss)}, "array", loss, accuracy)


def test_predictions_of_several_batches_are_joined() -> None:
    both = joined([prediction(3, 1.0, 1.0), prediction(1, 5.0, 0.0)])
    assert both.outputs["output"].shape == (4, 2)
    assert both.loss == pytest.approx(2.0)
    assert both.accuracy == pytest.approx(0.75)


def test_what_only_some_batches_tell_is_left_out() -> None:
    other = Prediction({"output": np.ones((2, 3)), "boxes": np.ones((2, 4))}, "arrays", 1.0, 0.5)
    both = joined([prediction(3, 1.0), other])
    assert not both.outputs
    assert both.accuracy is None


@pytest.mark.parametrize("interrupted", [False, True])
def test_statistics_that_were_tried_are_put_back(interrupted: bool) -> None:
    model = ToyModel()
    model.training = False
    adapter = ToyAdapter(model, [toy_batch()], Recipe(), None)
    panel, before = Panel.first(adapter, 1, 1), adapter.read(exact=True)
    tried = [Statistics((np.full(4, mean),), (np.full(4, 2.0),)) for mean in (10.0, 50.0)]
    alone = [panel.predict_with(each) for each in tried]
    ending = pytest.raises(KeyboardInterrupt) if interrupted else nullcontext()
    with ending, panel.trying() as predict:
        for each, expected in zip(tried, alone, strict=True):
            found = predict(each)
            np.testing.assert_array_equal(found.outputs["output"], expected.outputs["output"])
        if interrupted:
            raise KeyboardInterrupt
    after = adapter.read(exact=True)
    np.testing.assert_array_equal(after.mean, before.mean)
    np.testing.assert_array_equal(after.var, before.var)


@pytest.mark.parametrize("sizes", [[4, 4, 4], [16] * 8, [8, 8, 3], [2, 2]])
def test_every_sample_is_dealt_once_and_all_batches_share(sizes: list[int]) -> None:
    parts = deal(sizes)
    assert sorted(np.concatenate(parts)) == list(range(sum(sizes)))
    assert len(parts) == len(sizes)
    home = np.repeat(np.arange(len(sizes)), sizes)
    assert all(len(set(home[part])) == min(len(sizes), len(part)) for part in parts[:1])
    assert all(len(set(home[part])) > 1 for part in parts)


@pytest.mark.parametrize("sizes", [[4, 4, 4], [8, 8, 3], [2, 2]])
def test_every_sample_keeps_its_place(sizes: list[int]) -> None:
    """A training step may split its batch, into real and generated samples for example."""
    places = np.concatenate([np.arange(size) for size in sizes])
    parts = deal(sizes)
    assert [len(part) for part in parts] == sizes
    for part in parts:
        assert places[part].tolist() == list(range(len(part)))


def test_batches_of_one_become_a_single_one() -> None:
    assert [part.tolist() for part in deal([1, 1, 1])] == [[0, 1, 2]]


def test_calls_are_read_from_what_lies_between_them() -> None:
    rng = np.random.default_rng(0)
    means, variances = rng.normal(size=(3, 5)), rng.uniform(0.5, 2.0, (3, 5))
    points = [(np.zeros(5), np.ones(5))]
    for m, v in zip(means, variances, strict=True):
        points.append((0.9 * points[-1][0] + 0.1 * m, 0.9 * points[-1][1] + 0.1 * v))
    found = running.recover_calls(points, [0.1] * 3, 1e-5, 2.0**-52)
    np.testing.assert_allclose(np.stack(found.mean), means, atol=1e-12)
    np.testing.assert_allclose(np.stack(found.var), variances, atol=1e-12)


def test_channels_hidden_by_rounding_give_their_running_statistics() -> None:
    points = [(np.array([1e4]), np.array([1.0]))] * 3
    found = running.recover_calls(points, [1e-3] * 2, 1e-5, 2.0**-23)
    assert [mean.item() for mean in found.mean] == [1e4, 1e4]
    assert distances.spread(found, 1e-5) == 0.0

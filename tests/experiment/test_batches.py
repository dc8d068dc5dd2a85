"""Where mini-batches can come from, in both frameworks."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from pytest_bncheck import check
from pytest_bncheck.experiment.batches import HELD, gather

SAMPLES, SIZE = 32, 8


def samples() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, SAMPLES)
    return (rng.normal(5.0, 2.0, (SAMPLES, 6)) + labels[:, None]).astype("float32"), labels


def mini_batches() -> list[Any]:
    inputs, labels = samples()
    return [(inputs[k : k + SIZE], labels[k : k + SIZE]) for k in range(0, SAMPLES, SIZE)]


def endless() -> Iterator[Any]:
    return itertools.cycle(mini_batches())


ANY = {"list": mini_batches, "tuple": lambda: tuple(mini_batches()), "endless": endless}


# how many are taken -----------------------------------------------------------------------------


def test_no_more_is_taken_than_is_held() -> None:
    numbers = itertools.count()
    assert gather(None, numbers, 0) == list(range(HELD))
    assert next(numbers) == HELD


def test_a_long_list_is_cut() -> None:
    assert gather(None, list(range(2 * HELD)), 0) == list(range(HELD))


# PyTorch ----------------------------------------------------------------------------------------


def loaders() -> dict[str, Callable[[], Any]]:
    import torch
    from torch.utils import data

    pairs = data.TensorDataset(*map(torch.from_numpy, samples()))
    own = torch.Generator().manual_seed(3)

    class Stream(data.IterableDataset):  # type: ignore[type-arg]
        def __iter__(self) -> Iterator[Any]:
            return itertools.cycle(zip(*samples(), strict=True))

    return {
        "loader": lambda: data.DataLoader(pairs, SIZE),
        "shuffled": lambda: data.DataLoader(pairs, SIZE, shuffle=True),
        "own generator": lambda: data.DataLoader(pairs, SIZE, shuffle=True, generator=own),
        "stream": lambda: data.DataLoader(Stream(), SIZE),
    }


def torch_model() -> Any:
    import torch
    from torch import nn

    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


@pytest.mark.parametrize("source", [*ANY, "loader", "shuffled", "own generator", "stream"])
def test_sources_for_pytorch(source: str) -> None:
    pytest.importorskip("torch")
    batches = (ANY.get(source) or loaders()[source])()
    report = check(torch_model(), batches=batches, steps=12)
    assert report.batch_size == SIZE
    assert report.framework == "torch"
    assert len(report.training.loss) == 12
    turns = {round(loss, 6) for loss in report.training.loss[:4]}
    assert len(turns) == 4  # a mini-batch after the other


def test_a_shuffling_loader_is_as_before_and_gives_the_same_again() -> None:
    torch = pytest.importorskip("torch")
    loader = loaders()["own generator"]()
    models = torch_model(), torch_model()
    own, everyone = loader.generator.get_state(), torch.get_rng_state()
    first, second = (check(model, batches=loader, steps=8) for model in models)
    assert torch.equal(loader.generator.get_state(), own)
    assert torch.equal(torch.get_rng_state(), everyone)
    assert first.training.loss == second.training.loss


# Keras ------------------------------------------------------------------------------------------


def datasets() -> dict[str, Callable[[], Any]]:
    import keras

    class Dataset(keras.utils.PyDataset):  # type: ignore[misc]
        def __init__(self, count: int | None) -> None:
            super().__init__()
            self.count = count

        @property
        def num_batches(self) -> int | None:
            return self.count

        def __getitem__(self, index: int) -> Any:
            return mini_batches()[index % 4]

    def pairs() -> Any:
        tensorflow = pytest.importorskip("tensorflow", reason="needs tf.data")
        return tensorflow.data.Dataset.from_tensor_slices(samples())

    return {
        "tf.data": lambda: pairs().batch(SIZE),
        "tf.data repeated": lambda: pairs().shuffle(SAMPLES).batch(SIZE).repeat(),
        "PyDataset": lambda: Dataset(4),
        "endless PyDataset": lambda: Dataset(None),
    }


@pytest.mark.parametrize(
    "source", [*ANY, "tf.data", "tf.data repeated", "PyDataset", "endless PyDataset"]
)
def test_sources_for_keras(source: str) -> None:
    keras = pytest.importorskip("keras")
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.BatchNormalization(momentum=0.9),
            keras.layers.Dense(3),
        ]
    )
    batches = (ANY.get(source) or datasets()[source])()
    report = check(model, batches=batches, steps=6)
    assert report.batch_size == SIZE
    assert report.framework == "keras"
    turns = {round(loss, 6) for loss in report.training.loss[:4]}
    assert len(turns) == 4

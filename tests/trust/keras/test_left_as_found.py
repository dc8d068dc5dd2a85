"""Keras: whatever happens in a check, model, compiled state and generators are as before.

`CLAUSES` says what that is on the backend at hand, `clauses.endings` what may happen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

keras = pytest.importorskip("keras")

from keras.src.backend.common import global_state
from keras.src.layers.layer import CallContext

from clauses import (
    INTERRUPTIONS,
    PROCESS,
    REACHED,
    Clause,
    Ending,
    Helper,
    Mistake,
    around,
    changed,
    endings,
    helpers_kept,
    in_time,
    is_seen,
    nothing,
    process_kept,
    readings,
    staged,
)
from pytest_bncheck import check

BACKEND = keras.backend.backend()
STEPS = 3
KEPT = ("train_function", "test_function", "predict_function", "stop_training", "optimizer", "loss",
        "built", "compiled", "jit_compile", "run_eagerly", "steps_per_execution", "metrics_names",
        "_compile_loss", "_compile_metrics", "_loss_tracker")  # fmt: skip

# models -----------------------------------------------------------------------------------------

EVENT: list[Callable[[], Any]] = [nothing]
"""What happens in a call of the layer that follows."""


class Happening(keras.Layer):
    """Something happens in its calls, and it draws from a generator of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = keras.random.SeedGenerator(3)

    def call(self, x: Any, training: bool = False) -> Any:
        EVENT[0]()
        return x + 0.01 * keras.random.normal((8,), seed=self.generator) if training else x


def batch() -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    inputs, labels = rng.normal(8.0, 1.0, (24, 6)).astype("float32"), np.arange(24) % 3
    inputs[range(24), labels] += 4.0
    return inputs, labels


def world() -> Any:
    """A functional net with dropout that is compiled, with an optimizer that has its variables."""
    keras.utils.set_random_seed(1)
    keras.random.normal((1,))  # now there is a global generator
    inputs = keras.Input((6,))
    x = keras.layers.BatchNormalization(momentum=0.6)(inputs)
    x = keras.layers.Dense(8, activation="relu")(x)
    for layer in (Happening(), keras.layers.Dropout(0.1), *extra()):
        x = layer(x)
    model = keras.Model(inputs, keras.layers.Dense(3)(x))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-2), loss, metrics=["accuracy"])
    model.optimizer.build(model.trainable_variables)
    model.helper = Helper()
    model.seen, model.counts = [], {}  # TensorFlow wraps these
    return SimpleNamespace(model=model, batch=batch())


@pytest.fixture(scope="module")
def used() -> Any:
    """The same net after it was fitted for a step and used to predict."""
    held = world()
    held.model.fit(*held.batch, verbose=0)
    held.model.predict(held.batch[0], verbose=0)
    return held


def norm(held: Any) -> Any:
    return next(x for x in held.model.layers if isinstance(x, keras.layers.BatchNormalization))


def seeds(held: Any) -> list[Any]:
    return [g.state for layer in held.model._flatten_layers() for g in layer._seed_generators]


# what must not change ---------------------------------------------------------------------------


def exact(value: Any, depth: int = 3) -> Any:
    """Plain values as they are, containers with what is in them, and which object is the rest."""
    if isinstance(value, dict) and depth:
        return type(value), [(exact(k, 0), exact(v, depth - 1)) for k, v in value.items()]
    if isinstance(value, (list, tuple)) and depth:
        return type(value), [exact(item, depth - 1) for item in value]
    return value if isinstance(value, (str, int, float, bool, type(None))) else id(value)


def contents(variables: Any) -> dict[str, Any]:
    return {f"{k} {v.path}": (id(v), v.trainable, keras.ops.convert_to_numpy(v).tobytes())
            for k, v in enumerate(variables)}  # fmt: skip


def move(variable: Any) -> None:
    variable.assign(variable + 1)


def glob(name: str) -> Any:
    return global_state.get_global_attribute(name)


def of_layers(read: Callable[[Any], Any]) -> Callable[[Any], dict[str, Any]]:
    return lambda held: {x.path: read(x) for x in held.model._flatten_layers()}


MODEL = {
    "parameters": Clause(
        lambda w: contents(w.model.trainable_variables),
        lambda w: move(w.model.trainable_variables[0]),
    ),
    "buffers": Clause(
        lambda w: contents(w.model.non_trainable_variables), lambda w: move(norm(w).moving_variance)
    ),
    "seed generators of layers": Clause(
        lambda w: contents(seeds(w)), lambda w: [g.assign(g + 1) for g in seeds(w)]
    ),
    "what is trainable": Clause(
        of_layers(lambda x: x.trainable), lambda w: setattr(norm(w), "trainable", False)
    ),
    "calls of layers": Clause(
        of_layers(lambda x: vars(x).get("call")),
        lambda w: norm(w).__dict__.update(call=lambda x, **_: x),
    ),
    "attributes of layers": Clause(
        of_layers(lambda x: exact(vars(x))), lambda w: setattr(norm(w), "momentum", 0.5)
    ),
    "lists and dicts of the model": Clause(
        lambda w: [list(w.model.seen), dict(w.model.counts)],
        lambda w: (w.model.seen.append(1), w.model.counts.update({"calls": 1})),
    ),
    "losses of layers": Clause(
        lambda w: [id(loss) for loss in w.model.losses],
        lambda w: w.model._losses_override.append(keras.ops.ones(())),
    ),
    "state of the optimizer": Clause(
        lambda w: contents(w.model.optimizer.variables),
        lambda w: move(w.model.optimizer.iterations),
    ),
    "attributes of the optimizer": Clause(
        lambda w: exact(vars(w.model.optimizer)),
        lambda w: setattr(w.model.optimizer, "clipnorm", 1.0),
    ),
    "metrics": Clause(
        lambda w: contents(w.model.metrics_variables),
        lambda w: w.model.compute_metrics(
            None, *map(keras.ops.convert_to_tensor, (w.batch[1], np.ones((24, 3), "float32")))
        ),
    ),
    "compiled state": Clause(
        lambda w: {name: exact(getattr(w.model, name, None)) for name in KEPT},
        lambda w: setattr(w.model, "stop_training", True),
    ),
    "batch": Clause(
        lambda w: [part.tobytes() for part in w.batch], lambda w: w.batch[0].fill(0), undone=False
    ),
}
KERAS = {
    "global seed": Clause(
        lambda _: glob("global_random_seed"),
        lambda _: global_state.set_global_attribute("global_random_seed", 7),
    ),
    "global seed generator": Clause(
        lambda _: contents([glob("global_seed_generator").state]),
        lambda _: keras.random.normal((1,)),
    ),
    "names given to layers": Clause(
        lambda _: dict(glob("object_name_uids")), lambda _: keras.layers.Dense(1)
    ),
    "call context": Clause(
        lambda _: glob("current_call_ctx"),
        lambda w: global_state.set_global_attribute("current_call_ctx", CallContext(norm(w))),
    ),
    "default dtype": Clause(
        lambda _: (keras.config.floatx(), keras.config.epsilon(), keras.config.dtype_policy().name),
        lambda _: (keras.config.set_floatx("float16"), keras.config.set_dtype_policy("float16")),
    ),
    "image data format": Clause(
        lambda _: keras.config.image_data_format(),
        lambda _: keras.config.set_image_data_format("channels_first"),
    ),
}

# Each backend: its clauses, an exception of its own, and how to keep its switches. ---------------

if BACKEND == "tensorflow":
    import tensorflow as tf
    from tensorflow.python.eager import context as eager
    from tensorflow.python.framework import config as tf_config

    def extra() -> list[Any]:
        return []

    NO_MEMORY = tf.errors.ResourceExhaustedError(None, None, "OOM (simulated)")
    own = eager.context()
    SWITCHES = {
        "random state of TensorFlow": Clause(
            lambda _: (own._seed, getattr(own, "_rng", None) and own._rng.getstate()),
            lambda _: tf.random.set_seed(5),
        ),
        "eager mode": Clause(
            lambda _: (tf.executing_eagerly(), tf.config.functions_run_eagerly()),
            lambda _: tf.config.run_functions_eagerly(not tf.config.functions_run_eagerly()),
        ),
        "determinism": Clause(
            lambda _: tf_config.is_op_determinism_enabled(),
            lambda _: tf.config.experimental.enable_op_determinism(),
            undone=False,  # TensorFlow has no public way back
        ),
        "default device": Clause(
            lambda _: own.device_name, lambda _: own._set_device("CPU:0", None), undone=False
        ),
    }

    @contextmanager
    def switches_kept() -> Iterator[None]:
        yield
        tf_config.disable_op_determinism()
        tf.config.run_functions_eagerly(False)
        own._set_device("", None)

elif BACKEND == "torch":
    import torch

    import torch_clauses

    def modules(held: Any) -> list[tuple[Any, str, Any]]:
        layers = held.model._flatten_layers()
        return [(x, name, module) for x in layers for name, module in x.named_modules()]

    def extra() -> list[Any]:
        """A module of torch, whose mode Keras sets in each call, handed over in eval mode."""
        body = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Dropout(0.1)).eval()
        return [keras.layers.TorchModuleWrapper(body, output_shape=(None, 8))]

    NO_MEMORY = torch.OutOfMemoryError("CUDA out of memory (simulated)")
    SWITCHES, switches_kept = dict(torch_clauses.SWITCHES), torch_clauses.switches_kept
    MODEL |= {
        "gradients": Clause(
            lambda w: [(id(v.value.grad), str(v.value.grad)) for v in w.model.trainable_variables],
            lambda w: setattr(norm(w).gamma.value, "grad", torch.ones(6)),
        ),
        "every module's mode": Clause(
            lambda w: {(x.path, name): m.training for x, name, m in modules(w)},
            lambda w: [m.train(not m.training) for _, _, m in modules(w)],
        ),
        "hooks": Clause(
            lambda w: {
                (x.path, name): {k: list(v) for k, v in vars(m).items() if k.endswith("_hooks")}
                for x, name, m in modules(w)
            },
            lambda w: norm(w).register_forward_hook(lambda *_: None),
        ),
    }

else:
    import jax

    def extra() -> list[Any]:
        return []

    NO_MEMORY = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory (simulated)")
    SWITCHES = {
        "configuration of JAX": Clause(
            lambda _: dict(jax.config.values), lambda _: jax.config.update("jax_log_compiles", True)
        ),
        "default dtype of JAX": Clause(
            lambda _: (jax.config.jax_enable_x64, jax.config.jax_default_matmul_precision),
            lambda _: jax.config.update("jax_enable_x64", True),
        ),
        "default device": Clause(
            lambda _: jax.config.jax_default_device,
            lambda _: jax.config.update("jax_default_device", jax.devices()[0]),
        ),
    }

    @contextmanager
    def switches_kept() -> Iterator[None]:
        before = dict(jax.config.values)
        yield
        for name, value in before.items():
            if jax.config.values[name] != value:
                jax.config.update(name, value)


CLAUSES = {**MODEL, **REACHED, **PROCESS, **KERAS, **SWITCHES}
ENDINGS = endings(NO_MEMORY, STEPS)


@pytest.fixture(autouse=True)
def _keep() -> Iterator[None]:
    """A change that a test makes, or a check loses, is no fault of the next tests."""
    floats = keras.config.floatx(), keras.config.dtype_policy(), keras.config.image_data_format()
    with helpers_kept(), process_kept(), switches_kept():
        yield
    EVENT[0] = nothing
    global_state.set_global_attribute("current_call_ctx", None)
    keras.config.set_floatx(floats[0])
    keras.config.set_dtype_policy(floats[1])
    keras.config.set_image_data_format(floats[2])


# every clause after every ending ----------------------------------------------------------------


def run_to(ending: Ending, held: Any, happen: Callable[[], Any] = nothing) -> None:
    """A check that ends so; `happen` happens in the third call of the loss."""
    EVENT[0], in_loss = staged(ending, happen)

    def loss(outputs: Any, targets: Any) -> Any:
        in_loss()
        found = keras.losses.sparse_categorical_crossentropy(targets, outputs, from_logits=True)
        return keras.ops.mean(found) * (np.nan if ending.verdict == "warn" else 1.0)

    try:
        report = check(held.model, held.batch, steps=60 if ending.verdict else STEPS, loss=loss)
    finally:
        EVENT[0] = nothing
    assert report.verdict == ending.verdict, report


@pytest.mark.parametrize("ending", ENDINGS)
def test_left_as_found(used, ending):
    norm(used).momentum = 0.999 if ending == "fail" else 0.6
    norm(used).moving_mean.assign(keras.ops.zeros(6))
    assert changed(*around(CLAUSES, used, ENDINGS[ending], run_to)) == []


@pytest.mark.parametrize("clause", CLAUSES)
def test_a_change_is_seen(clause):
    assert is_seen(CLAUSES[clause], world())


@pytest.mark.parametrize("clause", [name for name, each in CLAUSES.items() if each.undone])
def test_a_change_is_undone(clause):
    """What the user's loss does at its third call, at one more call and an error."""
    held = world()
    before = readings(CLAUSES, held)
    with pytest.raises((Mistake, RuntimeError, TypeError, ValueError)):  # some end it before
        run_to(Ending(error=Mistake(), calls=3), held, lambda: CLAUSES[clause].change(held))
    assert changed(before, readings(CLAUSES, held)) == []


# Keras swallows what is raised while it compares the inputs' structure, and warns instead.
@pytest.mark.filterwarnings("ignore:The structure of `inputs`:UserWarning")
@pytest.mark.parametrize("error", INTERRUPTIONS)
@pytest.mark.parametrize("seconds", [0.01, 0.1, 0.3, 1.0])
def test_interrupted_anywhere(used, seconds, error):
    before = readings(CLAUSES, used)
    with pytest.raises(type(INTERRUPTIONS[error])), in_time(seconds, INTERRUPTIONS[error]):
        check(used.model, used.batch, steps=100_000)
    assert changed(before, readings(CLAUSES, used)) == []

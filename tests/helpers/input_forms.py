"""Batches as people have them, as rows of a table; `docs/how-to/inputs.md` shows them.

Every row is run: the model of each has running statistics that are too slow for its few steps, and
BN101 has to say so. In the code `x` and `y` are arrays, inputs and labels; other names say what
they stand for.
"""

from __future__ import annotations

from typing import NamedTuple


class Form(NamedTuple):
    """A form of a batch: what it is, how it is handed over, to which model, since which version."""

    what: str
    given: str
    model: str = "net()"
    since: str = "0.1"

    @property
    def call(self) -> str:
        """The call of `check`, as a user would write it."""
        return f"check({self.model}, {self.given})"


BOTH = [
    Form("inputs and targets", "(x, y)"),
    Form("the same in a list", "[x, y]"),
    Form("sequences of Python's numbers", "(x.tolist(), y.tolist())"),
    Form("double precision", '(x.astype("float64"), y)'),
    Form("extended precision", "(x.astype(np.longdouble), y)"),
    Form("small integers as labels", '(x, y.astype("uint8"))'),
    Form("reversed and transposed arrays", "(x[:, ::-1], y[::-1][::-1])"),
    Form("arrays in another byte order", '(x.astype(">f4"), y.astype(">i8"))'),
    Form("a masked array that masks nothing", "(np.ma.masked_array(x), y)"),
    Form("one-hot targets", "(x, np.eye(3)[y])"),
    Form("a dict with its targets under `labels`", '{"image": x, "labels": y}'),
    Form("under `label`", '{"image": x, "label": y}'),
    Form("under `targets`", '{"image": x, "targets": y}'),
    Form("under `target`", '{"image": x, "target": y}'),
    Form("under `y`", '{"x": x, "y": y}'),
    Form("under `y_true`", '{"x": x, "y_true": y}'),
    Form("under `mask`", '{"image": x, "mask": y}'),
    Form("under `masks`", '{"image": x, "masks": y}'),
    Form("padding with NaN that the model leaves out", "(padded, y)", "with_padding()"),
    Form("several mini-batches in a list", "batches=[(x[:16], y[:16]), (x[16:], y[16:])]"),
    Form("an iterator of mini-batches", "batches=zip(np.split(x, 2), np.split(y, 2))"),
]
"""Understood by both frameworks."""

TORCH = [
    Form("tensors", "(tx, ty)"),
    Form("several inputs", "((x, x), y)", "two_inputs()"),
    Form("several inputs by name", '({"left": x, "right": x}, y)', "two_inputs()"),
    Form(
        "a dict with the arguments of the model",
        '{"left": x, "right": x, "answer": y}',
        "two_inputs()",
    ),
    Form("inputs alone, for a step of yours", "tx, train_step=step"),
    Form("inputs alone in a tuple, for a step of yours", "(tx,), train_step=step"),
    Form("an object with a target among its attributes", "Graphs(x=tx, y=ty)", "of_graphs()"),
    Form(
        "the same for a model that takes its attributes",
        "Graphs(x=tx, edges=edges, y=ty)",
        "of_nodes()",
    ),
    Form("a dataclass", "Samples(tx, ty)"),
    Form("a named tuple", "Pair(x, y)"),
    Form("masks of 0 and 1 on one channel", "(images, images > 3)", "segmenter()"),
    Form(
        "targets that the model gets, for outputs `(logits, loss)`",
        '{"x": x, "targets": y}',
        "with_its_loss()",
    ),
    Form(
        "a list of samples with a dict each",
        "([*tx], [{'y': k} for k in ty]), train_step=sum_up",
        "detector()",
    ),
    Form("a DataLoader", "batches=DataLoader(pairs, 16)"),
    Form("a DataLoader of an IterableDataset", "batches=DataLoader(stream, 16)"),
    Form("another number of rows than samples", "(x, np.tile(y, 2))", "two_views()"),
]
"""Understood by the adapter for PyTorch."""

KERAS = [
    Form("tensors of the backend", "(convert(x), convert(y))"),
    Form("several inputs", "([x, x], y)", "two_inputs()"),
    Form("several inputs by name", '({"left": x, "right": x}, y)', "two_inputs()"),
    Form("several outputs", '(x, {"a": y, "b": y})', "two_outputs()"),
    Form("sample weights", "(x, y, np.ones(32))"),
    Form("inputs alone, for a model's own `train_step`", "x", "own_step()"),
    Form("inputs alone in a tuple, for the same", "(x,)", "own_step()"),
    Form("a dict of inputs, for the same", '{"image": x}', "own_step()"),
    Form("three inputs, for the same", "(x, x, x)", "own_step()"),
    Form("three inputs as `fit` hands them on, for the same", "((x, x, x),)", "own_step()"),
    Form(
        "targets for a model's own `compute_loss`, which gets the inputs, too",
        "(x, y)",
        "distiller()",
    ),
    Form("inputs alone, for a model's own `compute_loss`", "x", "distiller()"),
    Form("inputs alone, where layers add the loss", "x", "adds_its_loss()"),
    Form("a PyDataset", "batches=Sequence()"),
    Form("another number of rows than samples", "(x, y), forward=two_views, loss=of_both"),
]
"""Understood by the adapter for Keras, on TensorFlow, PyTorch and JAX."""

TENSORFLOW = [
    Form("a `tf.data` data set", "batches=pairs.batch(16)"),
    Form(
        "one of inputs alone, for a model's own `train_step`",
        "batches=inputs.batch(16)",
        "own_step()",
    ),
]
"""Understood by the adapter for Keras on TensorFlow."""

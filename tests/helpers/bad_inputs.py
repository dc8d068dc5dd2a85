"""Inputs that cannot be used, as rows of a table; `docs/errors.md` says what each one gives.

A row is what is wrong and the code or text of it. `OPTIONS` go to the command line or the ini
file, `MARKERS` into a mark, `FIXTURES` into a test class, `CHECKS` into a call of `check`.
"""

from __future__ import annotations

from typing import NamedTuple


class Row(NamedTuple):
    """What is wrong, and how one writes it."""

    what: str
    given: str


OPTIONS = [
    Row("a negative number of steps", "--bncheck-steps=-1"),
    Row("steps that are no number", "--bncheck-steps=five"),
    Row("no planned updates", "--bncheck-planned-updates=0"),
    Row("an empty device", "--bncheck-device="),
    Row("a seed that is no number", "--bncheck-seed=x"),
    Row("a seed out of range", "--bncheck-seed=4294967296"),
    Row("a tolerance that is not a number", "--bncheck-gap-tolerance=nan"),
    Row("a negative tolerance", "--bncheck-distortion-tolerance=-0.1"),
    Row("an unknown rule", "--bncheck-select=running-stats-unconverged"),
    Row("an unknown rule with a reason", "--bncheck-ignore=stochastic: not now"),
    Row("an unknown rule's page", "--bncheck-explain=mode-stick"),
    Row("a report in a missing directory", "--bncheck-json=missing/report.json"),
    Row("a report that is a directory", "--bncheck-json=."),
    Row("a report below a file", "--bncheck-json=conftest.py/report.json"),
    Row("a report without a path", "--bncheck-json="),
    # Not even root can make a file there.
    Row("a report in a directory that cannot be written", "--bncheck-json=/proc/report.json"),
    Row("a page in a directory that cannot be written", "--bncheck-html=/proc/report.html"),
    Row("a page in a missing directory", "--bncheck-html=missing/report.html"),
    Row("a page that is a directory", "--bncheck-html=."),
    Row("a page below a file", "--bncheck-html=conftest.py/report.html"),
    Row("steps that are no number, in the ini file", "bncheck_steps = five"),
    Row("an unknown rule, in the ini file", "bncheck_ignore = stochastic: not now"),
    Row("a report in a missing directory, in the ini file", "bncheck_json = missing/report.json"),
]

MARKERS = [
    Row("a negative number of steps", "steps=-1"),
    Row("a fraction of a step", "steps=2.5"),
    Row("a truth value for a number", "steps=True"),
    Row("a word for a number", 'steps="many"'),
    Row("fewer planned updates than steps", "steps=50, planned_updates=20"),
    Row("a negative seed", "seed=-1"),
    Row("a device by its number", "device=0"),
    Row("no tolerance at all", "gap_tolerance=0"),
    Row("a tolerance in percent", 'distortion_tolerance="10 %"'),
    Row("a word for a truth value", 'strict="maybe"'),
    Row("an unknown rule", 'select="mode-stick"'),
    Row("no rule", 'select=""'),
    Row("a number for a rule", "ignore=101"),
    Row("an unknown rule with a reason", 'ignore={"stochastic": "not now"}'),
    Row("an unknown design", 'intended="frozen"'),
    Row("a misspelt option", "step=50"),
    Row("an option that does not exist", "epochs=5"),
    Row("an option without its name", "50"),
    Row("the name of a loss", 'loss="mse"'),
    Row("a loss of the outputs alone", "loss=lambda outputs: 0.0"),
    Row("the name of an optimizer", 'optimizer="adam"'),
    Row("a training step of the model alone", "train_step=lambda model: 0.0"),
    Row("a forward pass that is no function", "forward=1"),
]

FIXTURES = [
    Row("no model", "def bncheck_model(self): return None"),
    Row("the class of a model", "def bncheck_model(self): return ToyModel"),
    Row("no batch", "def bncheck_batch(self): return None"),
    Row("no mini-batch", "def bncheck_batches(self): return []"),
    Row("a number of mini-batches", "def bncheck_batches(self): return 3"),
    Row(
        "a batch and mini-batches in one place",
        "def bncheck_batch(self): return toy_batch()\n"
        "@pytest.fixture\n"
        "def bncheck_batches(self): return [toy_batch()]",
    ),
    Row(
        "a loss in place of a function that returns it",
        "def bncheck_loss(self, outputs, targets): ...",
    ),
    Row("a loss that is a number", "def bncheck_loss(self): return 0.5"),
    Row("the name of an optimizer", 'def bncheck_optimizer(self): return "adam"'),
    Row("a training step that is no function", "def bncheck_train_step(self): return True"),
    Row(
        "a forward pass of the batch alone", "def bncheck_forward(self): return lambda batch: batch"
    ),
    Row("a model that cannot be built", "def bncheck_model(self): return ToyModel(1, 2, 3, 4)"),
]

CHECKS = [
    Row("neither a batch nor batches", "check(net())"),
    Row("a batch and batches", "check(net(), (x, y), batches=[(x, y)])"),
    Row("no batches", "check(net(), batches=[])"),
    Row("a number of batches", "check(net(), batches=3)"),
    Row("a word for batches", 'check(net(), batches="train")'),
    Row("an array of batches", "check(net(), batches=x)"),
    Row("a dict of batches", 'check(net(), batches={"train": (x, y)})'),
    Row("no batch among batches", "check(net(), batches=[(x, y), None])"),
    Row("no model", "check(None, (x, y))"),
    Row("a function", "check(lambda x: x, (x, y))"),
    Row("a number for a model", "check(3, (x, y))"),
    Row("several models", "check([net(), net()], (x, y))"),
    Row("a batch of no samples", "check(net(), (x[:0], y[:0]))"),
    Row("an empty batch among others", "check(net(), batches=[(x, y), (x[:0], y[:0])])"),
    Row("a batch of one sample", "check(net(), (x[:1], y[:1]))"),
    Row("inputs without targets", "check(net(), x)"),
    Row("inputs alone in a tuple", "check(net(), (x,))"),
    Row("four parts", "check(net(), (x, x, x, y))"),
    Row("a word", 'check(net(), "images")'),
    Row("a number", "check(net(), 3)"),
    Row("an object", "check(net(), object())"),
    Row("an empty tuple", "check(net(), ())"),
    Row("an empty dict", "check(net(), {})"),
    Row("a dict of words", 'check(net(), {"image": "a.png", "label": "cat"})'),
    Row("a dict under unknown keys", 'check(net(), {"left": x, "right": x, "kind": y})'),
    Row("a generator of batches as one batch", "check(net(), iter([(x, y)]))"),
    Row("a data set as one batch", "check(net(), samples())"),
    Row("samples for batches", "check(net(), batches=[(x[0], y[0]), (x[1], y[1])])"),
    Row("numbers without samples", "check(net(), (x[0, 0], y[0]))"),
    Row("a single sample", "check(net(), (x[0], y[0]))"),
    Row("a single number as targets", "check(net(), (x, 1))"),
    Row("targets that are None", "check(net(), (x, None))"),
    Row("inputs that are None", "check(net(), (None, y))"),
    Row("targets that are words", 'check(net(), (x, ["cat"] * 12))'),
    Row("an array of words", 'check(net(), (np.full((12, 4), "a"), y))'),
    Row("an array of bytes", 'check(net(), (np.full((12, 4), b"a"), y))'),
    Row("an array of objects", "check(net(), (np.full((12, 4), None), y))"),
    Row("arrays in an array", "check(net(), (np.array([x, None], dtype=object), y))"),
    Row("an array of dates", 'check(net(), (x.astype("datetime64[s]"), y))'),
    Row("an array of spans of time", 'check(net(), (x.astype("timedelta64[s]"), y))'),
    Row("an array of records", 'check(net(), (np.zeros(12, [("a", "f4")]), y))'),
    Row("targets that are records", 'check(net(), (x, np.zeros(12, [("a", "i4")])))'),
    Row("complex numbers", "check(net(), (x + 1j, y))"),
    Row("complex targets", "check(net(), (x, y + 1j))"),
    Row("a list of complex numbers", "check(net(), ((x + 1j).tolist(), y))"),
    Row("a masked array", "check(net(), (np.ma.masked_greater(x, 1), y))"),
    Row("a masked array in a dict", 'check(net(), {"image": np.ma.masked_greater(x, 1), "y": y})'),
    Row("masked targets", "check(net(), (x, np.ma.masked_equal(y, 1)))"),
    Row("rows of different lengths", "check(net(), ([[1.0, 2.0], [3.0]] * 6, y))"),
    Row("a list that holds itself", "check(net(), itself())"),
    Row("a dict that holds itself", "check(net(), itself({}))"),
    Row("thousands of lists in each other", "check(net(), (nested(x, 2000), y))"),
    Row("NaN among the inputs", "check(net(), (np.where(x > 1, np.nan, x), y))"),
    Row("infinity among the inputs", "check(net(), (np.where(x > 1, np.inf, x), y))"),
    Row("NaN in a dict", 'check(net(), {"image": np.where(x > 1, np.nan, x), "label": y})'),
    Row("NaN in a list", "check(net(), (np.where(x > 1, np.nan, x).tolist(), y))"),
    Row("NaN among the targets", "check(net(4), (x, np.where(x > 1, np.nan, x)))"),
    Row("a label too large", "check(net(), (x, y + 1))"),
    Row("a negative label", "check(net(), (x, y - 1))"),
    Row("a label too large, in a list", "check(net(), (x, (y + 1).tolist()))"),
    Row("fewer labels than samples", "check(net(), (x, y[:10]))"),
    Row("more labels than samples", "check(net(), (x, np.tile(y, 2)))"),
    Row("labels as floats", "check(net(), (x, y + 0.5))"),
    Row("targets of another width", "check(net(), (x, x[:, :2]))"),
    Row("labels with one axis too many", "check(net(), (x, y[:, None, None]))"),
    Row("inputs of another width", "check(net(), (x[:, :3], y))"),
    Row("a frozen model", "check(frozen(), (x, y))"),
    Row("a device that is not there", 'check(net(), (x, y), device="cuda:99")'),
    Row("a device of no framework", 'check(net(), (x, y), device="abacus")'),
    Row("the name of an optimizer", 'check(net(), (x, y), optimizer="adam")'),
    Row("an optimizer that is None", "check(net(), (x, y), optimizer=lambda params: None)"),
    Row(
        "a training step without a loss",
        "check(net(), (x, y), train_step=lambda model, batch: None)",
    ),
    Row(
        "a training step that returns a word",
        'check(net(), (x, y), train_step=lambda model, batch: "done")',
    ),
    Row(
        "a training step for a batch that the model does not take",
        "check(net(), (x, x, x, y), train_step=lambda model, batch: 0.0)",
    ),
    Row(
        "a prediction for a batch that no step is known for",
        "check(net(), (x, x, x, y), forward=lambda model, batch: model(batch[0]))",
    ),
    Row("a prediction that is None", "check(net(), (x, y), forward=lambda model, batch: None)"),
    Row("a loss that is None", "check(net(), (x, y), loss=lambda outputs, targets: None)"),
    Row("a loss that is a word", 'check(net(), (x, y), loss=lambda outputs, targets: "low")'),
    Row("a loss without a gradient", "check(net(), (x, y), loss=lambda outputs, targets: 0.5)"),
    Row("a loss that raises", "check(net(), (x, y), loss=lambda outputs, targets: 1 / 0)"),
    Row("more steps than planned", "check(net(), (x, y), steps=50, planned_updates=20)"),
    Row("a misspelt option", "check(net(), (x, y), step=5)"),
]
"""For every framework; `x` and `y` are NumPy arrays, `net` makes a model of 3 outputs or more."""

TORCH = [
    Row("the class of a model", "check(nn.Linear, (x, y))"),
    Row("the weights of a model", "check(net().state_dict(), (x, y))"),
    Row("three parts", "check(net(), (x, y, y))"),
    Row("a tensor without targets", "check(net(), tx)"),
    Row("a DataLoader as one batch", "check(net(), DataLoader(samples(), 4))"),
    Row("whole numbers for a layer of floats", "check(net(), (tx.long(), ty))"),
    Row("inputs in double precision", "check(net(), (tx.double(), ty))"),
    Row("a complex tensor for real layers", "check(net(), (tx + 1j, ty))"),
    Row("a model in half precision", "check(net().half(), (tx, ty))"),
    Row("inputs on the meta device", 'check(net(), (tx.to("meta"), ty))'),
    Row("a nested tensor", "check(net(), (nested_tensor(tx), ty))"),
    Row("labels that are all left out", "check(net(), (x, ty.new_full((12,), -100)))"),
    Row("more arguments than the model has", "check(net(), ((x, x), y))"),
    Row(
        "more arguments than the model has, for a step of the user's",
        "check(net(), ((x, x), y), train_step=lambda model, batch: 0.0)",
    ),
    Row("a model without parameters", "check(nn.ReLU(), (x, y))"),
    Row("a model on the meta device", 'check(net().to("meta"), (x, y))'),
    Row("a quantised model", "check(quantised(), (x, y))"),
    Row("a scripted model", "check(scripted(), (x, y))"),
    Row("an optimizer of another model", "check(net(), (x, y), optimizer=adam(net()))"),
    Row(
        "a training step that returns many losses",
        "check(net(), (x, y), train_step=lambda model, batch: tx)",
    ),
    Row("a loss for each sample", "check(net(), (x, y), loss=lambda outputs, targets: outputs)"),
]
"""For PyTorch alone; `tx` and `ty` are tensors."""

KERAS = [
    Row("a class of models", "check(keras.Sequential, (x, y))"),
    Row("a layer", "check(keras.layers.Dense(3), (x, y))"),
    Row("a symbolic tensor", "check(net(), (keras.Input((4,)), y))"),
    Row("a PyDataset as one batch", "check(net(), data_set())"),
    Row("sample weights for other samples", "check(net(), (x, y, np.ones(5)))"),
    Row("a word for sample weights", 'check(net(), (x, y, "balanced"))'),
    Row("fewer labels, for a compiled loss", "check(compiled(), (x, y[:10]))"),
    Row("a label too large, for a compiled loss", "check(compiled(), (x, y + 1))"),
    Row("targets of another width, for a compiled loss", "check(compiled('mse'), (x, x[:, :2]))"),
    Row("inputs alone, for a compiled loss", "check(compiled(), x)"),
    Row(
        "NaN among the inputs, for a compiled loss",
        "check(compiled(), (np.where(x > 1, np.nan, x), y))",
    ),
    Row("inputs alone, where no layer adds a loss", "check(compiled(None), x)"),
    Row("one input for two", "check(two_inputs(), (x, y))"),
    Row("inputs under other names", 'check(two_inputs(), {"a": x, "b": x, "labels": y})'),
    Row("one target for two outputs", "check(two_outputs(), (x, y))"),
    Row("three inputs, or weights", "check(own_step('mse'), (x, x, x))"),
    Row("an own step that is not compiled", "check(own_step(compiled=False), x)"),
    Row(
        "logs without a loss",
        'check(net(), (x, y), train_step=lambda model, batch: {"accuracy": 1.0})',
    ),
    Row("an optimizer of PyTorch", "check(net(), (x, y), optimizer=foreign())"),
]
"""For Keras alone."""

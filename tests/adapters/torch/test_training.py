"""Real training code in PyTorch: batches, outputs, steps and models in the forms people use."""

from __future__ import annotations

import collections
import re
import textwrap
from dataclasses import dataclass
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import nn
from torch.nn.functional import cross_entropy

from classifier import Net, data
from pytest_bncheck import InputError, check
from pytest_bncheck.adapters.torch.adapter import TorchAdapter
from pytest_bncheck.types import Recipe


def plain_step(model: Any, loss: Any = cross_entropy, forward: Any = None, lr: float = 1e-3) -> Any:
    """A step as users write it, around an optimizer of its own."""
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)

    def train_step(model: Any, batch: Any) -> Any:
        optimizer.zero_grad()
        value = loss(forward(model, batch) if forward else model(batch[0]), batch[1])
        value.backward()
        optimizer.step()
        return value

    return train_step


def numbers(report: Any) -> Any:
    """What must not depend on the form: losses, scores and layers."""
    found = report.to_dict()
    return found["training"], found["predictions"], found["layers"]


@pytest.fixture(scope="module")
def expected() -> Any:
    return numbers(check(Net(), data(), steps=5))


# batches ----------------------------------------------------------------------------------------


class Record(collections.UserDict):  # as tokenizers return it: no dict, but a mapping
    """A batch that is a mapping."""


class Whole(Net):
    """Takes the whole dict."""

    def forward(self, batch: Any) -> Any:
        return super().forward(batch["x"])


class Keywords(Net):
    """Takes anything."""

    def forward(self, image: Any, **more: Any) -> Any:
        return super().forward(image)


X, Y = data()


@pytest.mark.parametrize(
    ("kind", "batch"),
    [
        (Net, {"image": X, "label": Y}),
        (Net, {"image": X, "species": Y}),  # what is left over
        (Net, {"pixels": X, "targets": Y}),  # the only input there is
        (Net, Record({"image": X, "labels": Y})),
        (Net, ({"image": X}, Y)),
        (Net, [X, Y]),
        (Net, ((X,), Y)),
        (Whole, {"x": X, "length": torch.ones(16), "y": Y}),
        (Keywords, {"image": X, "length": torch.ones(16), "labels": Y}),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_batches(kind: Any, batch: Any, expected: Any) -> None:
    assert numbers(check(kind(), batch, steps=5)) == expected


def test_a_dict_s_keys_are_those_of_the_model_inside_a_wrapper() -> None:
    batch = {"image": X, "label": Y}
    averaged = torch.optim.swa_utils.AveragedModel(Net())
    assert check(averaged, batch, steps=0).predictions == check(Net(), batch, steps=0).predictions


@dataclass(frozen=True)
class Pair:
    """A batch as an object."""

    image: Any
    label: Any

    def __getitem__(self, index: int) -> Any:
        return (self.image, self.label)[index]


class Opaque:
    """A batch that shows nothing of itself."""

    def __init__(self, *parts: Any) -> None:
        self.parts = parts

    def __getitem__(self, index: int) -> Any:
        return self.parts[index]


@pytest.mark.parametrize(
    ("batch", "size"), [(Pair(X, Y), 16), (Opaque(X, Y), None), ((X, Y, 3), 16)]
)
def test_a_batch_that_only_the_user_s_functions_understand(batch: Any, size: Any) -> None:
    model = Net()
    report = check(
        model, batch, train_step=plain_step(model, lr=1e-2), forward=lambda m, b: m(b[0])
    )
    assert report.batch_size == size
    assert report.predictions.gap < 0.1
    assert not report.findings


# outputs ----------------------------------------------------------------------------------------


@dataclass
class Answer:
    """Outputs as an object."""

    logits: Any
    hidden: Any


Named = collections.namedtuple("Named", ["first", "second"])


@pytest.mark.parametrize(
    "form",
    [
        lambda logits, hidden: (logits, hidden),
        lambda logits, hidden: [logits, hidden],
        lambda logits, hidden: {"logits": logits, "hidden": hidden},
        lambda logits, hidden: {"out": logits, "aux": hidden},
        lambda logits, hidden: {"prediction": logits, "version": "1"},
        lambda logits, hidden: {"loss": None, "logits": logits},
        Answer,
        Named,
    ],
    ids=["tuple", "list", "logits", "out", "only", "no loss", "dataclass", "namedtuple"],
)
def test_outputs(form: Any, expected: Any) -> None:
    class Formed(Net):
        def forward(self, image: Any) -> Any:
            hidden = self.body(image)
            return form(self.head(hidden), 0 * hidden)

    training, predictions, layers = numbers(check(Formed(), data(), steps=5))
    assert (training, layers) == (expected[0], expected[2])
    assert predictions["train"] == expected[1]["train"]
    assert predictions["retained"] == expected[1]["retained"]
    assert predictions["gap"] == pytest.approx(expected[1]["gap"])


@pytest.mark.parametrize(
    "kind", [dict, lambda **parts: collections.namedtuple("O", parts)(**parts)]
)
def test_a_loss_that_the_model_returns(kind: Any, expected: Any) -> None:
    class OwnLoss(Net):
        def forward(self, image: Any, labels: Any) -> Any:
            logits = super().forward(image)
            return kind(loss=cross_entropy(logits, labels), logits=logits)

    report = check(OwnLoss(), {"image": X, "labels": Y}, steps=5)
    training, predictions, layers = numbers(report)
    assert (training, layers) == (expected[0], expected[2])
    assert predictions["eval"] == expected[1]["eval"]


# steps ------------------------------------------------------------------------------------------


def test_a_step_as_the_plugin_makes_it_gives_the_same(expected: Any) -> None:
    model = Net()
    report = check(model, data(), train_step=plain_step(model), steps=5)
    assert numbers(report) == expected


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_the_step_tells_the_loss_and_only_cross_entropy_an_accuracy(scale: float) -> None:
    """Losses on one scale: that of eval mode is what the step returns there."""
    model = Net()
    step = plain_step(
        model, lambda outputs, labels: scale * cross_entropy(outputs, labels), lr=1e-2
    )
    report = check(model, data(), train_step=step, steps=40)
    predictions, first = report.predictions, report.training.loss[0]
    assert scale * 0.1 < predictions.eval.loss < first / 2
    assert 0.9 < predictions.retained < 1.1
    assert (predictions.eval.accuracy is None) == (scale != 1.0)


def test_a_part_that_returns_something_odd_does_not_disturb_a_step(expected: Any) -> None:
    class Odd(nn.Module):
        def forward(self, x: Any) -> Any:
            return {"loss": x.square(), "x": x}

    class Nested(Net):
        def __init__(self) -> None:
            super().__init__()
            self.odd = Odd()

        def forward(self, image: Any) -> Any:
            return super().forward(self.odd(image)["x"])

    model = Nested()
    assert numbers(check(model, data(), train_step=plain_step(model), steps=5)) == expected


def test_a_step_tells_probabilities_from_logits() -> None:
    class Probabilities(Net):
        def forward(self, image: Any) -> Any:
            return super().forward(image).softmax(1)

    model = Probabilities()
    step = plain_step(model, lambda outputs, labels: nn.functional.nll_loss(outputs.log(), labels))
    report = check(model, data(), train_step=step, steps=40)
    assert report.predictions.train.loss == pytest.approx(report.training.loss[-1], rel=0.1)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_rounding_is_that_of_autocast(dtype: Any) -> None:
    """Half a batch alone may then differ by more, and does not depend on its other half."""
    autocast = torch.autocast("cpu", dtype, enabled=dtype is not None)
    lab = TorchAdapter(Net(), [data()], Recipe(forward=autocast(lambda m, b: m(b[0]))), None)
    lab.save()
    lab.begin()
    lab.predict(0)
    lab.restore()
    assert (lab.noise > 1e-3) == (dtype is not None)


def test_everything_that_a_step_holds_is_as_found() -> None:
    model = Net().to(memory_format=torch.contiguous_format)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=1)
    average = torch.optim.swa_utils.AveragedModel(model, use_buffers=True)
    counts = {"steps": 0}

    def train_step(model: Any, batch: Any) -> Any:
        counts["steps"] += 1
        optimizer.zero_grad()
        loss = cross_entropy(model(batch[0]), batch[1])
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        schedule.step()
        average.update_parameters(model)
        return loss

    def state() -> Any:
        return [
            {key: value.tolist() for key, value in model.state_dict().items()},
            {key: value.tolist() for key, value in average.state_dict().items()},
            optimizer.state_dict(),
            schedule.state_dict(),
            scaler.state_dict(),
            dict(counts),
        ]

    before = state()
    check(model, data(), train_step=train_step, steps=5)
    assert state() == before


def test_a_step_s_global_variables_are_as_found() -> None:
    """In a script the optimizer is a variable of the module."""
    model = Net()
    code = """
        def count():
            global steps
            steps += 1

        def train_step(model, batch):
            count()
            optimizer.zero_grad()
            loss = cross_entropy(model(batch[0]), batch[1])
            loss.backward()
            optimizer.step()
            return loss
    """
    optimizer = torch.optim.Adam(model.parameters())
    scope = {"optimizer": optimizer, "steps": 0, "cross_entropy": cross_entropy, "__name__": "mine"}
    exec(textwrap.dedent(code), scope)
    report = check(model, data(), train_step=scope["train_step"], steps=5)
    assert report.steps == 5
    assert scope["steps"] == 0
    assert not optimizer.state


# models -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("used", [False, True], ids=["new", "used"])
def test_a_compiled_model_is_checked_as_it_was_written(backend: str, used: bool) -> None:
    net = Net()
    expected = numbers(check(net, data(), steps=5))
    model = torch.compile(net, backend=backend)
    if used:
        model(X)
        net.load_state_dict(Net().state_dict())
    before = {key: value.clone() for key, value in net.state_dict().items()}
    assert numbers(check(model, data(), steps=5)) == expected
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert torch._dynamo.eval_frame._stance.stance == "default"


def test_a_compiled_part_keeps_its_name_and_is_counted() -> None:
    net = Net()
    net.body.compile(backend="eager")
    net.head = torch.compile(net.head, backend="eager")
    with torch.no_grad():
        net(X)
    report = check(net, data(), steps=5)
    (layer,) = report.layers
    assert (layer.name, layer.updates) == ("body.1", 5)


def test_modules_in_a_compiled_model_are_named_as_the_user_does() -> None:
    class Hidden(Net):
        """Keeps its normalisation where eval() does not find it."""

        def __init__(self) -> None:
            super().__init__()
            self.hidden = [nn.Dropout(0.5)]

        def forward(self, image: Any) -> Any:
            return self.head(self.hidden[0](self.body(image)))

    report = check(torch.compile(Hidden(), backend="eager"), data(), steps=100)
    (finding,) = report.findings
    assert (finding.code, list(finding.layers)) == ("BN301", ["hidden[0]"])


def test_a_memory_format_is_as_found() -> None:
    def build() -> Any:
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )

    images = torch.randn(8, 3, 6, 6).to(memory_format=torch.channels_last)
    labels = torch.arange(8) % 4
    last = build().to(memory_format=torch.channels_last)
    assert check(last, (images, labels), steps=5).batch_size == 8
    assert last[0].weight.is_contiguous(memory_format=torch.channels_last)

    model, first = build(), images.contiguous()
    step = plain_step(model, forward=lambda m, b: m.to(memory_format=torch.channels_last)(b[0]))
    check(model, (first, labels), train_step=step, steps=5)
    assert model[0].weight.is_contiguous()


def test_tied_weights_stay_tied() -> None:
    one, two = nn.Linear(6, 6), nn.Linear(6, 6)
    two.weight = one.weight
    model = nn.Sequential(one, nn.BatchNorm1d(6), two)
    for restore in (True, False):
        check(model, data(), steps=5, restore=restore)
        assert model[2].weight is model[0].weight


def test_detections_are_not_compared_and_nothing_is_said() -> None:
    class Detector(Net):
        """Losses in training mode; in eval mode as many rows as it is sure of."""

        def forward(self, images: Any, targets: Any = None) -> Any:
            logits = super().forward(torch.stack(images))
            if self.training:
                return {"loss": cross_entropy(logits, torch.stack([t["label"] for t in targets]))}
            return [{"rows": row[row > 0]} for row in logits]

    model = Detector()
    batch = list(X), [{"label": label} for label in Y]
    report = check(
        model,
        batch,
        steps=60,
        train_step=plain_step(model, lambda losses, _: losses["loss"], lambda m, b: m(*b)),
    )
    assert (report.batch_size, report.predictions.gap, report.verdict) == (16, None, "pass")


# errors -----------------------------------------------------------------------------------------


class Strange(Net):
    """Returns what it is told to."""

    def __init__(self, form: Any) -> None:
        super().__init__()
        self.form = form

    def forward(self, image: Any) -> Any:
        return self.form(super().forward(image))


class Two(Net):
    """Takes two inputs."""

    def forward(self, left: Any, right: Any) -> Any:
        return super().forward(left + right)


class Silent(nn.Module):
    """Has parameters and no forward."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 4)


ERRORS = {
    "unknown keys": (
        lambda: check(Net(), {"left": X, "right": X, "kind": Y}, steps=1),
        r'its keys "left", "right", "kind" do not fit the arguments of Net.forward: "image"',
        {"bncheck_forward", "bncheck_train_step"},
    ),
    "unknown inputs": (
        lambda: check(Net(), {"left": X, "right": X, "labels": Y}, steps=1),
        r"do not fit the arguments of Net.forward",
        {"bncheck_forward"},
    ),
    "three parts": (
        lambda: check(Net(), (X, X, Y), steps=1),
        r"expected \(inputs, targets\) or a dict, got a tuple of 3",
        {"bncheck_forward", "bncheck_train_step"},
    ),
    "no tensor": (
        lambda: check(Net(), Opaque(X, Y), steps=1),
        r"no tensor or array of samples in an Opaque",
        {"bncheck_forward", "bncheck_train_step"},
    ),
    "losses": (
        lambda: check(Strange(lambda y: {"a": y.mean(), "b": y.std()}), (X, Y), steps=1),
        r'the model returns losses \("a", "b"\) and no predictions',
        {"bncheck_train_step"},
    ),
    "detector": (
        lambda: check(Net(), (list(X), [{"label": y} for y in Y]), steps=1),
        "a dict of targets each",
        {"bncheck_train_step"},
    ),
    "no output": (
        lambda: check(Strange(lambda y: ["cat"] * len(y)), (X, Y), steps=1),
        "a list of 16 holds no tensor",
        {"bncheck_forward"},
    ),
    "no forward": (
        lambda: check(Silent(), (X, Y), steps=1),
        "Silent defines no forward",
        {"bncheck_forward"},
    ),
    "targets": (
        lambda: check(Net(), (X, ["cat"] * 16), steps=1),
        "it cannot be inferred from outputs, a tensor of shape .16, 4.*a list of 16",
        {"bncheck_loss"},
    ),
    "no targets": (
        lambda: check(Net(), {"image": X}, steps=1),
        "the batch holds no targets to infer it from; the outputs are a tensor of shape",
        {"bncheck_train_step"},
    ),
    "several outputs": (
        lambda: check(Strange(lambda y: {"a": y, "b": y}), (X, Y), steps=1),
        "a dict with 'a', 'b'",
        {"bncheck_loss"},
    ),
    "no scalar": (
        lambda: check(Net(), (X, Y), loss=lambda outputs, targets: outputs, steps=1),
        r"expected one number .* got a tensor of shape \(16, 4\)",
        {"bncheck_loss"},
    ),
    "no gradient": (
        lambda: check(Net(), (X, Y), loss=lambda outputs, _: outputs.detach().mean(), steps=1),
        r"got a tensor without a gradient \(",
        {"bncheck_loss"},
    ),
    "one input for two": (
        lambda: check(Two(), (X, Y), steps=1),
        r'do not fit the arguments of Two.forward: "left", "right" \(missing a required',
        {"bncheck_forward"},
    ),
    "three inputs for two": (
        lambda: check(Two(), ((X, X, X), Y), steps=1),
        r'arguments of Two.forward: "left", "right" \(too many positional arguments\)',
        {"bncheck_forward"},
    ),
    "words as inputs": (
        lambda: check(Net(), (["cat"] * 16, Y), steps=1),
        "there is no array in its inputs, a list of 16",
        {"bncheck_forward"},
    ),
    "no loss from the step": (
        lambda: check(Net(), (X, Y), train_step=lambda model, batch: None, steps=1),
        "train_step returned None; it has to return the loss",
        {"bncheck_train_step"},
    ),
    "losses from the step": (
        lambda: check(Net(), (X, Y), train_step=lambda model, batch: {"loss": 1.0}, steps=1),
        "train_step returned a dict with 'loss'; it has to return the loss, one number",
        {"bncheck_train_step"},
    ),
    "no tensor as loss": (
        lambda: check(Net(), (X, Y), loss=lambda outputs, _: outputs.mean().item(), steps=1),
        "expected one number .* got a float",
        {"bncheck_loss"},
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_one_error_says_which_fixture_to_override_with_code_to_paste(name: str) -> None:
    run, message, hooks = ERRORS[name]
    with pytest.raises(InputError, match=re.compile(message, re.DOTALL)) as caught:
        run()
    text = str(caught.value)
    problem, code = text.split("\n\n", 1)
    assert f"override {' and '.join(sorted(hooks))}" in problem
    scope: dict[str, Any] = {"pytest": pytest, "torch": torch}
    exec(textwrap.dedent(code), scope)
    assert max(map(len, code.splitlines())) <= 80
    assert hooks == {name for name in scope if name.startswith("bncheck_")}


@pytest.mark.parametrize("returned", [None, X, {"loss": 1.0}, "0.1?"])
def test_a_step_has_to_return_one_number(returned: Any) -> None:
    with pytest.raises(InputError, match=r"train_step returned .*; it has to return the loss"):
        check(Net(), (X, Y), train_step=lambda model, batch: returned, steps=1)


def test_code_from_an_error_works(pytester: Any, monkeypatch: Any) -> None:
    """The example for a batch that says nothing, pasted as it is."""
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    with pytest.raises(InputError) as caught:
        check(Net(), (X, X, Y), steps=1)
    code = textwrap.dedent(str(caught.value).split("\n\n", 1)[1])
    pytester.makeconftest(
        "import pytest, torch\n"
        "@pytest.fixture\ndef bncheck_model():\n"
        "    return torch.nn.Sequential(torch.nn.BatchNorm1d(6), torch.nn.Linear(6, 4))\n"
        "@pytest.fixture\ndef bncheck_batch():\n"
        "    labels = torch.arange(16) % 4\n"
        "    x = torch.randn(16, 6) + labels.unsqueeze(1)\n"
        "    return x, x, labels\n" + code
    )
    pytester.makepyfile(
        "import pytest\n@pytest.mark.bn_consistency(steps=60)\ndef test_model(): ..."
    )
    result = pytester.runpytest_inprocess("--bncheck", "-p", "no:cacheprovider", "--assert=plain")
    result.assert_outcomes(passed=1)


def test_an_optimizer_that_calls_a_closure() -> None:
    """LBFGS computes the loss several times in a step; every one updates the statistics."""
    report = check(Net(), data(), steps=5, optimizer=torch.optim.LBFGS)
    assert report.predictions.train.accuracy == 1.0
    assert len(report.training.loss) == 5
    (layer,) = report.layers
    assert layer.updates > 5

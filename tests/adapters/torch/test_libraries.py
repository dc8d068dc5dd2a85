"""PyTorch Lightning without a Trainer, and Hugging Face models without a download."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pl = pytest.importorskip("pytorch_lightning")

from torch import nn
from torch.nn.functional import cross_entropy

import classifier
from classifier import data
from pytest_bncheck import InputError, check


class Net(pl.LightningModule):
    """A classifier that logs and calls its parts as real ones do."""

    def __init__(self, *, lr: float = 1e-3) -> None:
        super().__init__()
        plain = classifier.Net()
        self.body, self.head, self.lr = plain.body, plain.head, lr

    def forward(self, x: Any) -> Any:
        return self.head(self.body(x))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        loss = cross_entropy(self(x), y)
        self.log("loss", loss, on_step=True, sync_dist=True)
        self.log_dict({"epoch": float(self.current_epoch), "step": float(self.global_step)})
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.lr)


def losses(model: Any, **options: Any) -> list[float]:
    return list(check(model, data(), steps=5, **options).training.loss)


@pytest.fixture(scope="module")
def expected() -> list[float]:
    return losses(classifier.Net())


# steps ------------------------------------------------------------------------------------------


def test_training_step_and_optimizer_are_the_module_s(expected: list[float]) -> None:
    assert losses(Net()) == expected
    assert losses(Net(lr=0.1)) != expected


def test_a_module_is_as_found_and_scored_by_its_own_loss() -> None:
    model = Net(lr=1e-2)
    before, attributes = copy.deepcopy(model.state_dict()), dict(vars(model))
    report = check(model, data())
    assert not report.findings
    assert report.predictions.eval.loss == pytest.approx(report.training.loss[-1], rel=0.2)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert vars(model) == attributes
    with pytest.raises(RuntimeError, match="not attached to a `Trainer`"):
        model.trainer  # noqa: B018


@pytest.mark.filterwarnings("ignore")
def test_a_trainer_s_first_steps_are_the_same(expected: list[float]) -> None:
    """What a check does is what Lightning's own Trainer does."""
    seen = []

    class Spied(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = super().training_step(batch, batch_idx)
            seen.append(loss.item())
            return loss

    loader = torch.utils.data.DataLoader([data()] * 5, batch_size=None)
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Spied(), loader)
    assert seen == expected


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("momentum", "updates", "codes"), [(0.01, 25, ["BN101"]), (0.1, 80, [])])
def test_a_module_after_its_trainer(momentum: float, updates: int, codes: list[str]) -> None:
    """The trainer stays in the module, with weak references to it and a loader."""
    torch.manual_seed(0)
    model = Net(lr=1e-2)
    model.body[1].momentum = momentum
    batch = data()[0] * 5 + 20, data()[1]
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, torch.utils.data.DataLoader([batch] * updates, batch_size=None))
    report = check(model, batch, steps=0)
    assert [finding.code for finding in report.findings] == codes, str(report)
    assert report.layers[0].updates == pytest.approx(updates, rel=0.25)
    assert model.trainer is trainer


def adam(model: Any) -> Any:
    return torch.optim.Adam(model.parameters())


def schedule(optimizer: Any) -> Any:
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.0 if step else 1.0)


@pytest.mark.parametrize(
    ("form", "stops"),
    [
        (lambda m: [adam(m)], False),
        (lambda m: {"optimizer": adam(m)}, False),
        (lambda m: ([o := adam(m)], [schedule(o)]), False),  # once an epoch
        (lambda m: ([o := adam(m)], [{"scheduler": schedule(o), "interval": "step"}]), True),
        (lambda m: {"optimizer": (o := adam(m)), "lr_scheduler": schedule(o)}, False),
        (
            lambda m: {
                "optimizer": (o := adam(m)),
                "lr_scheduler": {"scheduler": schedule(o), "interval": "step"},
            },
            True,
        ),
    ],
)
def test_forms_of_configure_optimizers(form: Any, stops: bool, expected: list[float]) -> None:
    class Formed(Net):
        def configure_optimizers(self) -> Any:
            return form(self)

    found = losses(Formed())
    if stops:  # at a learning rate of 0 after the first step
        assert found[0] == expected[0]
        assert len(set(found[1:])) == 1
    else:
        assert found == expected


def test_an_optimizer_of_the_user_s_comes_first(expected: list[float]) -> None:
    class None_(Net):
        """Says nothing about its optimizer."""

        configure_optimizers = pl.LightningModule.configure_optimizers

    assert losses(None_()) == expected
    optimizer = lambda params: torch.optim.Adam(params, lr=1e-3)  # noqa: E731
    assert losses(Net(lr=0.5), optimizer=optimizer) == expected


def test_a_loss_or_a_step_of_the_user_s_comes_first(expected: list[float]) -> None:
    doubled = losses(Net(), loss=lambda outputs, labels: 2 * cross_entropy(outputs, labels))
    assert doubled[0] == pytest.approx(2 * expected[0])
    model = Net()
    assert set(losses(model, train_step=lambda m, b: 7.0 + 0 * m(b[0]).sum().item())) == {7.0}


def test_manual_optimisation_without_a_returned_loss(expected: list[float]) -> None:
    class Manual(Net):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch: Any) -> None:
            optimizer, (x, y) = self.optimizers(), batch
            with self.toggled_optimizer(optimizer):
                optimizer.zero_grad()
                self.manual_backward(cross_entropy(self(x), y))
                self.clip_gradients(optimizer, gradient_clip_val=1e9)
                optimizer.step()
            assert self.lr_schedulers() is None

    assert losses(Manual()) == expected


def test_clipping_clips() -> None:
    class Clipped(Net):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch: Any) -> None:
            optimizer = self.optimizers()
            for algorithm in ("norm", "value"):
                optimizer.zero_grad()
                self.manual_backward(100 * self(batch[0]).square().sum())
                self.clip_gradients(optimizer, 0.5, algorithm)
                gradients = [p.grad for p in self.parameters()]
                if algorithm == "norm":
                    assert nn.utils.get_total_norm(gradients).item() == pytest.approx(0.5)
                else:
                    assert max(g.abs().max().item() for g in gradients) == 0.5

    assert check(Clipped(), data(), steps=2).steps == 2


def test_hooks_around_the_step_are_called(capsys: pytest.CaptureFixture[str]) -> None:
    class Hooked(Net):
        def __getattribute__(self, name: str) -> Any:
            if name.startswith(("on_", "training_step", "backward")):
                print(name)  # a list would be put back
            return super().__getattribute__(name)

    check(Hooked(), data(), steps=1)
    called = capsys.readouterr().out.split()
    order = [
        "on_train_epoch_start",
        "on_train_batch_start",
        "training_step",
        "on_before_zero_grad",
        "on_before_backward",
        "backward",
        "on_after_backward",
        "on_before_optimizer_step",
        "on_train_batch_end",
    ]
    assert list(dict.fromkeys(called)) == order


def test_a_backbone_frozen_at_the_start_of_an_epoch_is_frozen_by_design() -> None:
    class Frozen(Net):
        def __init__(self) -> None:
            super().__init__(lr=0.1)
            self.body.requires_grad_(False)

        def on_train_epoch_start(self) -> None:
            self.body.eval()

    assert not check(Frozen(), data()).findings


def test_a_backbone_left_in_eval_mode_is_found() -> None:
    """Since 2.2 a Trainer keeps the modes that a module comes with."""
    model = Net(lr=1e-2)
    model.train()
    model.body.eval()
    (finding,) = check(model, data(), steps=60).findings
    assert (finding.code, list(finding.layers)) == ("BN305", ["body.1"])


def test_a_compiled_module(expected: list[float]) -> None:
    assert losses(torch.compile(Net(), backend="eager")) == expected


# errors -----------------------------------------------------------------------------------------


def test_a_module_without_a_training_step_asks_for_one() -> None:
    class None_(Net):
        training_step = pl.LightningModule.training_step

    with pytest.raises(InputError, match=r"None_ defines no training_step; override bncheck_train"):
        check(None_(), data(), steps=1)
    assert check(None_(), data(), steps=0).steps == 0


def test_a_module_without_a_forward_asks_for_one() -> None:
    class None_(Net):
        forward = pl.LightningModule.forward

        def training_step(self, batch: Any) -> Any:
            return cross_entropy(self.head(self.body(batch[0])), batch[1])

    with pytest.raises(InputError, match=r"None_ defines no forward.*override bncheck_forward"):
        check(None_(), data(), steps=1)
    report = check(None_(), data(), steps=60, forward=lambda m, b: m.head(m.body(b[0])))
    assert report.predictions.gap is not None


@pytest.mark.parametrize("returned", [None, 1.0, {"logits": 1}, torch.ones(2), torch.ones(())])
def test_a_training_step_without_a_loss(returned: Any) -> None:
    class Odd(Net):
        def training_step(self, batch: Any) -> Any:
            return returned

    with pytest.raises(InputError, match=r"Odd.training_step returned no loss that can be trained"):
        check(Odd(), data(), steps=1)


@pytest.mark.parametrize(
    ("form", "message"),
    [
        (lambda m: "adam", "configure_optimizers returned a str; expected an optimizer"),
        (lambda m: [adam(m), adam(m)], "returned 2 optimizers; automatic optimisation takes one"),
    ],
)
def test_odd_optimizers(form: Any, message: str) -> None:
    class Odd(Net):
        def configure_optimizers(self) -> Any:
            return form(self)

    with pytest.raises(InputError, match=message):
        check(Odd(), data(), steps=1)


def test_a_step_that_needs_its_trainer_says_so() -> None:
    class Needy(Net):
        def training_step(self, batch: Any) -> Any:
            return self.trainer.num_training_batches * super().training_step(batch, 0)

    with pytest.raises(InputError, match=r"asks for self.trainer.num_training_batches; there"):
        check(Needy(), data(), steps=1)


# Hugging Face -----------------------------------------------------------------------------------


def resnet(**options: Any) -> Any:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.ResNetConfig(
        num_channels=1,
        embedding_size=8,
        hidden_sizes=[8],
        depths=[1],
        layer_type="basic",
        num_labels=4,
        **options,
    )
    return transformers.ResNetForImageClassification(config)


def images() -> Any:
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(16) % 4
    pixels = torch.randn(16, 1, 8, 8, generator=generator) + labels.view(16, 1, 1, 1)
    return {"pixel_values": pixels, "labels": labels}


def test_a_model_from_a_configuration_uses_its_own_loss() -> None:
    report = check(resnet(), images(), steps=5)
    batch = images()
    report_given = check(
        resnet(),
        (batch["pixel_values"], batch["labels"]),
        loss=lambda outputs, labels: cross_entropy(outputs.logits, labels),
        steps=5,
    )
    assert report.training.loss == pytest.approx(report_given.training.loss)
    assert report.predictions.eval.loss == pytest.approx(report_given.predictions.eval.loss)
    assert report.predictions.eval.accuracy == report_given.predictions.eval.accuracy


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("momentum", "updates", "codes"), [(0.01, 25, ["BN101"]), (0.1, 60, [])])
def test_a_model_after_its_trainer(
    momentum: float, updates: int, codes: list[str], tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    model, batch = resnet(), images()
    batch["pixel_values"] = 5 * batch["pixel_values"] + 20
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = momentum
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=updates,
        per_device_train_batch_size=16,
        learning_rate=1e-2,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
    )
    rows = [dict(zip(batch, row, strict=True)) for row in zip(*batch.values(), strict=True)]
    transformers.Trainer(model=model, args=arguments, train_dataset=rows).train()
    report = check(model, batch, steps=0)
    assert [finding.code for finding in report.findings] == codes, str(report)
    assert report.layers[0].updates == pytest.approx(updates, rel=0.25)


def test_a_batch_from_a_tokenizer_keeps_its_type() -> None:
    transformers = pytest.importorskip("transformers")

    def forward(model: Any, batch: Any) -> Any:
        assert type(batch) is transformers.BatchEncoding
        return model(**batch)

    batch = transformers.BatchEncoding(dict(images()))
    report = check(resnet(), batch, forward=forward, steps=2)
    assert report.batch_size == 16


def test_outputs_as_a_plain_tuple_bring_their_loss_too() -> None:
    whole, plain = resnet(), resnet(return_dict=False)
    plain.load_state_dict(whole.state_dict())
    losses = [check(model, images(), steps=2).training.loss for model in (whole, plain)]
    assert losses[0] == losses[1]

"""What every check needs of a PyTorch model: its training, its layers, its passes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pytest_bncheck.adapters.base import (
    Adapter,
    Mode,
    Pass,
)
from pytest_bncheck.adapters.devices import pick, rounding, torch_devices
from pytest_bncheck.adapters.hints import kind, seen
from pytest_bncheck.adapters.random_state import RandomState, fingerprint
from pytest_bncheck.adapters.refusals import refuse_source
from pytest_bncheck.adapters.states import Adopted
from pytest_bncheck.adapters.torch import lightning
from pytest_bncheck.adapters.torch import step as steps
from pytest_bncheck.adapters.torch.batch import batch_length, refuse_samples
from pytest_bncheck.adapters.torch.buffers import Buffers, Place, parameter_places
from pytest_bncheck.adapters.torch.data import (
    Raw,
    dtype_name,
    on_host,
    to_tensors,
)
from pytest_bncheck.adapters.torch.dialect import DIALECT, RECALIBRATE
from pytest_bncheck.adapters.torch.hints import hints
from pytest_bncheck.adapters.torch.internals import as_written, require_internals
from pytest_bncheck.adapters.torch.layers import Layers
from pytest_bncheck.adapters.torch.loss import Criterion
from pytest_bncheck.adapters.torch.modes import Watch, depends_on_mode, is_library_leaf
from pytest_bncheck.adapters.torch.own_loss import OwnLoss
from pytest_bncheck.adapters.torch.passes import Passes
from pytest_bncheck.adapters.torch.placement import move
from pytest_bncheck.adapters.torch.record import Record
from pytest_bncheck.adapters.torch.refusals import not_finite, refuse_model, refuse_synchronised
from pytest_bncheck.adapters.torch.rehearsal import Rehearsals
from pytest_bncheck.adapters.torch.replicas import Replicas, shard_again, sharded_modules
from pytest_bncheck.adapters.torch.state import BesidesLazy, Snapshot
from pytest_bncheck.adapters.torch.states import States
from pytest_bncheck.adapters.undo import Ending, run_all
from pytest_bncheck.types import (
    Calls,
    Layer,
    Prediction,
    Recipe,
    Statistics,
)

if TYPE_CHECKING:
    pass


class TorchCore(Adapter):
    """The required members of `Adapter`.

    PyTorch stores the unbiased running variance; it leaves here as biased.
    """

    framework = "torch"
    backend = "torch"
    dialect = DIALECT

    @classmethod
    def accepts(cls, model: Any) -> bool:
        """Whether this adapter can take the model."""
        return isinstance(model, nn.Module)

    def __init__(
        self, model: nn.Module, batches: Sequence[Any], recipe: Recipe, device: str | None
    ) -> None:
        self.model = model
        self.recipe = recipe
        refuse_model(model)
        require_internals()
        self._to = None if device is None else torch.device(pick(device, torch_devices(device)))
        self._home = next((t.device for t in _tensors(model)), torch.device("cpu"))
        home = self._to or self._home
        self.device = str(home)
        dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), None)
        self._layers = Layers(model)
        understood = recipe.forward is None and recipe.train_step is None
        self._batches = [to_tensors(batch, home, dtype, understood=understood) for batch in batches]
        self._sizes = [batch_length(batch) for batch in self._batches]
        self.batch_size = self._sizes[0]
        if None in self._sizes and None in (recipe.forward, recipe.train_step):
            batch = batches[self._sizes.index(None)]
            refuse_source(batch)
            raise hints.no_forward_and_step(
                f"batch: no tensor or array of samples in {kind(batch)} ({seen(batch)}); "
                "expected (inputs, targets) or a dict, of tensors or arrays"
            )
        if understood and recipe.loss is None:
            refuse_samples(self.model, self._batches)
        self._criterion = Criterion(recipe.loss)
        self._custom_step = steps.is_custom(model, recipe)
        self._log: list[Raw] = []
        self._read_log: list[Statistics] = []
        self._trained_on: dict[int, Pass] = {}
        """Passes on the training path that equal those in training mode, by mini-batch."""
        self._own_loss: OwnLoss | None = None
        self._trained, self._writes = False, False
        self._left_weights: set[int] = set()
        """Mini-batches whose prediction leaves the parameters alone as they are now."""
        self._state_places: list[Place] = []
        self._cleanup = ExitStack()
        self.noise = rounding(dtype_name(dtype), self.device)

    # before -----------------------------------------------------------------------------------

    def save(self) -> None:
        __tracebackhide__ = True
        if any(nn.parameter.is_lazy(tensor) for tensor in _tensors(self.model)):
            self._materialise()
        self._snapshot = Snapshot(self.model, *vars(self.recipe).values(), self._batches)
        self._snapshot.name_what_is_left()
        if self._to is not None:
            self._cleanup.callback(move(self.model, self._to))
        lightning.attach(self.model)
        self._layers = Layers(self.model)
        if not self._layers.are_reset_by_update_bn:
            self.dialect = dataclasses.replace(DIALECT, recalibrate=RECALIBRATE)
        self._passes = self._make_passes(self._snapshot.paths)
        for batch in self._batches:
            self._passes.refuse_call(batch)
        self._record = Record(self.model, self._snapshot)
        self._states = States(self.model, self._layers, self._snapshot.paths)
        self._adopted = Adopted()
        self._rehearsals = Rehearsals(self._layers, self._states, self._snapshot.paths)
        self._replicas = Replicas(self.model)
        self.follows = self._replicas.follows
        self._step = steps.make(self.model, self.recipe, self._passes.forward, self._criterion)
        if self._custom_step:
            self._own_loss = OwnLoss(self._step, self.model, *vars(self.recipe).values())
        self._cleanup.enter_context(as_written())
        self._cleanup.callback(shard_again, sharded_modules(self.model))

    def _make_passes(self, paths: Mapping[nn.Module, str]) -> Passes:
        return Passes(
            self.model,
            self.recipe,
            self._layers,
            self._criterion,
            paths,
            custom_step=self._custom_step,
            needs_loss=self.expected_steps > 0 and not self._custom_step,
        )

    def _materialise(self) -> None:
        """Give lazy modules their parameters by one forward pass, which changes nothing else."""
        __tracebackhide__ = True
        before = BesidesLazy(self.model, *vars(self.recipe).values(), self._batches)
        for module in self.model.modules():
            module.training = False
        ending = Ending(before.restore)
        with ending, ending, torch.no_grad(), as_written():
            self._make_passes({}).forward(to_tensors(self._batches[0], self._home, None))

    def restore(self, *, keep_weights: bool = False) -> None:
        trained = self._states.trained() if keep_weights else None
        after = [] if trained is None else [trained]
        run_all([self._cleanup.close, self._snapshot.restore, *after])

    # training ---------------------------------------------------------------------------------

    def begin(self) -> None:
        __tracebackhide__ = True
        self._passes.begin()
        refuse_synchronised(self.model, torch.device(self.device))
        self._layers.calls.watch()
        if not (self.expected_steps or self._layers.are_own):
            self._meet_layers()
        self._layers.calls.reset()
        self._log, self._calls = [self._layers.raw()], self._layers.calls.counted()
        self._states.begin()

    def _meet_layers(self) -> None:
        """A pass in which layers of unknown classes show what they do, as training steps would."""
        __tracebackhide__ = True
        state, batch = RandomState.capture(), self._batches[0]
        with torch.no_grad(), self._layers.kept():
            self._passes.in_training(lambda: self._passes.forward(batch))
        state.restore()
        self._layers.leave_strangers([])
        self._passes.enter_training()

    def resume(self) -> None:
        self._trained_on.clear()
        self._passes.resume()

    def train_step(self, index: int) -> None:
        __tracebackhide__ = True
        self._losses.append(self.step(index))
        self._trained = True
        self._left_weights.clear()
        self._state_places = []
        self._log.append(self._layers.raw())  # stays on the device; `history` reads it

    def step(self, index: int) -> Any:
        __tracebackhide__ = True
        first, ran = not self._losses, Watch()
        before = fingerprint() if first else {}
        with torch.enable_grad(), ran.open(), self._layers.calls.during_step():
            loss = self._step(self._batches[index])
        self._passes.follow(ran)
        self._record.add(ran, self._layers.calls.kept_in_step)
        self._states.add(ran)
        self._rehearsals.compare(ran, self._layers.calls.in_step(), loss)
        if first:
            self.stochastic = before != fingerprint()
            self._log = self._layers.order_by_call(self._log)
        if self._layers.has_strangers:
            self._log, self._read_log = self._layers.leave_strangers(self._log), []
        self._calls = self._layers.calls.counted()
        return loss.detach() if isinstance(loss, Tensor) else loss

    def fetched(self, losses: Sequence[Any]) -> list[float]:
        tensors = [each if isinstance(each, Tensor) else _number(each) for each in losses]
        tensors = [tensor.reshape(()) for tensor in tensors]
        return [float(value) for value in on_host(tensors)]

    @property
    def history(self) -> list[Statistics]:
        self._read_log += self._layers.biased_each(self._log[len(self._read_log) :])
        return self._adopted.history(self._read_log)

    @property
    def calls(self) -> Calls:
        return self._adopted.calls(self._calls)

    @property
    def kept(self) -> list[list[float]]:
        return self._adopted.kept(self._record.kept(self._layers))

    # layers and their statistics --------------------------------------------------------------

    def not_finite(self, index: int) -> str | None:
        return not_finite(self._batches[index])

    def layers(self) -> list[Layer]:
        begun, idle = self._passes.modes, set(self._record.idle())
        resting = [m for m, training in self._passes.last_modes.items() if not training]
        # A layer that rests is frozen by design, unless it trained when training began and learns.
        in_eval = {id(m) for m in resting if not (begun.get(m, False) and m in idle)}
        known = self._layers.describe(in_eval, self._record.frozen(self._layers))
        return [*known, *self._adopted.layers(self.dialect.momentum_of)]

    def read(self, *, exact: bool = False) -> Statistics:
        known = self._layers.biased(self._layers.raw(), exact)
        return self._adopted.after(known, self._states.read(self._adopted.names))

    def write(self, statistics: Statistics, *, exact: bool = False) -> None:
        known, states = self._adopted.apart(statistics)
        self._layers.write(known, exact)
        self._states.write(states)

    # passes -----------------------------------------------------------------------------------

    def run(self, index: int, mode: Mode, *, observe: bool = True) -> Pass:
        __tracebackhide__ = True
        self._leave_seldom()
        if mode is Mode.EVAL:
            with self._left_alone():
                return Pass(self._predict(index, observe))
        # The first pass of a model that is handed over may be the first of all that it makes.
        with nullcontext() if self._losses else self._states.kept():
            return self._run_in_training(index, mode)

    def _run_in_training(self, index: int, mode: Mode) -> Pass:
        __tracebackhide__ = True
        match mode:
            case Mode.BATCH_STATISTICS:
                return self._with_batch_statistics(self._batches[index], self._sizes[index])
            case Mode.TRAINING:
                return self._trained_on.get(index) or self._in_training(index)
            case _:
                return self._on_training_path(index)

    def predict_again(self, index: int) -> Prediction:
        __tracebackhide__ = True
        with self._states.tensors_kept():
            self._passes.enter_eval()
            self._passes.run(self._batches[index], self._sizes[index], observe=False)
            return self._predict(index, observe=True)

    def _left_alone(self) -> AbstractContextManager[None]:
        """What a pass in eval mode writes goes back, if any did."""
        return self._states.tensors_kept() if self._writes else nullcontext()

    def _leave_seldom(self) -> None:
        """After training: look no more at layers whose statistics move now and then only."""
        if not self._trained:
            return
        self._trained = False
        if seldom := [] if self._layers.are_own else self._states.seldom():
            self._layers.rates.strange.update(seldom)
            self._log, self._read_log = self._layers.leave_strangers(self._log), []
            self._calls = self._layers.calls.counted()

    def _predict(self, index: int, observe: bool) -> Prediction:
        __tracebackhide__ = True
        batch, size = self._batches[index], self._sizes[index]
        self._passes.enter_eval()
        if not observe:
            return self._scored(self._passes.run(batch, size, observe=False), batch)
        parameters = [] if index in self._left_weights else parameter_places(self.model)
        if parameters and not self._left_weights:
            self._drop_gradients()  # their memory serves the copies
        watch = Watch()
        before = Buffers((*self._places_of_state(), *parameters))
        with watch.open():
            prediction = self._passes.run(batch, size)
        prediction = self._scored(prediction, batch)
        if watch.low_precision is not None:  # autocast, whatever the parameters' dtype
            self.noise = rounding(dtype_name(watch.low_precision), self.device)
        in_training = [
            self._snapshot.paths[module]
            for module in watch.training
            if module in self._snapshot.paths and depends_on_mode(module)
        ]
        changed, weights = before.put_back_moved(), {name for name, _, _ in parameters}
        rewritten = tuple(name for name in changed if name in weights)
        self._writes |= bool(changed)
        if not rewritten:
            self._left_weights.add(index)
        return dataclasses.replace(
            prediction,
            mutated=tuple(name for name in changed if name not in weights),
            rewritten=rewritten,
            in_training=tuple(in_training),
        )

    def _places_of_state(self) -> list[Place]:
        """Where all is that a pass can change besides parameters; looked for once after a step."""
        if not self._state_places:
            self._state_places = [*self._layers.other_places(), *self._layers.places()]
        return self._state_places

    def _drop_gradients(self) -> None:
        """Forget what the last step left, unless the step is the user's, which may add it up."""
        if not self._custom_step:
            self._record.frozen(self._layers)  # has to see them
            nn.Module.zero_grad(self.model)

    def _with_batch_statistics(self, batch: Any, size: int | None) -> Pass:
        __tracebackhide__ = True
        self._passes.enter_eval()
        active = self._active()
        for module in active.values():
            module.training = True
        return self._with_statistics(active, lambda: self._scored_run(batch, size))

    def _scored_run(self, batch: Any, size: int | None, *, gradients: bool = False) -> Prediction:
        __tracebackhide__ = True
        return self._scored(self._passes.run(batch, size, gradients=gradients), batch)

    def _scored(self, prediction: Prediction, batch: Any) -> Prediction:
        """A prediction with the loss of the user's step, where only that knows it."""
        if prediction.loss is not None or self._own_loss is None or not self._losses:
            return prediction
        last = self._rehearsals.last
        if last is not None and last.is_of_others:
            return prediction
        with self._layers.calls.apart():
            return dataclasses.replace(prediction, loss=self._own_loss(batch))

    def _in_training(self, index: int) -> Pass:
        __tracebackhide__ = True
        active = self._active()

        def forward() -> None:
            self._passes.forward(self._batches[index])

        def run() -> Pass:
            with self._passes.as_trained(), torch.set_grad_enabled(bool(self._losses)):
                return self._with_statistics(active, forward)

        return self._passes.in_training(run)

    def _on_training_path(self, index: int) -> Pass:
        __tracebackhide__ = True
        active = self._active()
        other = self._enter_training_path(active)
        batch, size = self._batches[index], self._sizes[index]

        def run() -> Prediction:
            # Code can ask whether there are gradients, and a step has them.
            return self._scored_run(batch, size, gradients=bool(self._losses))

        try:
            with self._passes.as_trained():
                found = self._with_statistics(active, run)
        except Exception:
            if not self._custom_step:
                raise
            return Pass(None)  # in training mode the model needs more than its inputs
        if not other and found.prediction is not None and not found.prediction.random:
            # Then this is the whole pass in training mode.
            self._trained_on[index] = dataclasses.replace(found, prediction=None)
        return found

    def _enter_training_path(self, active: Mapping[str, Any]) -> bool:
        """Training mode without stochastic layers; whether any layer of the library differs."""
        self._passes.enter_training()
        live = {id(module) for module in active.values()}
        other = False
        for module in self.model.modules():
            if is_library_leaf(module):
                other |= module.training != (id(module) in live) and depends_on_mode(module)
                module.training = id(module) in live
        return other

    def _with_statistics(self, active: Iterable[str], run: Callable[[], Prediction | None]) -> Pass:
        """A pass with the batch statistics of the active layers, which start from zero."""
        __tracebackhide__ = True
        with self._layers.emptied(active):
            self._layers.calls.reset()
            prediction = run()
            filled = self._replicas.broadcast(self._layers.raw())
            calls = self._layers.calls.counted()
        return Pass(prediction, self._layers.batch_statistics(filled, active), calls)

    def _active(self) -> dict[str, Any]:
        """The layers that used batch statistics in training, or would have."""
        pairs = zip(self._layers.modules.items(), self._calls.training, strict=True)
        return {
            name: module
            for (name, module), calls in pairs
            if (calls or not self._losses)
            and self._passes.last_modes.get(module, True)
            and not self._layers.is_constant(name)
        }


def _number(loss: Any) -> Tensor:
    """A loss that is no tensor, as it is."""
    return torch.as_tensor(loss, dtype=torch.float64, device="cpu")


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()

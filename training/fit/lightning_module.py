"""The LightningModule of every potential: bare hosts and hosts with Φ train by the same code, step by step or whole."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import lightning.pytorch as pl
import torch
from torch_ema import ExponentialMovingAverage

from phi_equivariant.inputs.graphs import GraphBatch
from training.data.order import WholeSet
from training.fit.losses import Objective
from training.fit.optimisers import Schedule, build_optimizer, build_schedule, set_rates, set_training_mode
from training.fit.predict import check_finite, frozen, predict, refuse_loss
from training.fit.sums import EpochSums
from training.report.samples import LabelPairs
from training.run import HEAD, Optimiser, Stages


class PotentialModule(pl.LightningModule):
    """Trains a potential.

    ``model`` : anything with mace's call signature; ``outputs`` : which of forces, stress and virials the loss needs;
    ``heads`` : names of the validation sets, in the order of their loaders.
    """

    schedule: Schedule  # from :meth:`configure_optimizers` on

    def __init__(
        self,
        model: torch.nn.Module,
        objective: Objective,
        optimiser: Optimiser,
        stages: Stages,
        outputs: dict[str, bool],
        steps_per_epoch: int,
        stage_two: Objective | None = None,
        heads: Sequence[str] = (HEAD,),
    ) -> None:
        super().__init__()
        self.model, self.outputs = model, outputs
        self.objectives = torch.nn.ModuleList([objective, *([] if stage_two is None else [stage_two])])
        self.stage = 1
        self.part, self.stages, self.steps_per_epoch = optimiser, stages, steps_per_epoch
        self.ema = ExponentialMovingAverage(model.parameters(), decay=optimiser.ema_decay) if optimiser.ema else None
        self.epochs_left = stages.max_num_epochs  # of the present stage
        self.epochs_that_fit: int | None = None  # a time limit sets it
        self.row: dict[str, Any] = {}  # metrics of the present epoch
        self.valid_loss = float("inf")
        self.plotted: Callable[[], LabelPairs] | None = None  # what the validation keeps for plots
        self.pairs: LabelPairs | None = None
        self._sums = EpochSums()  # of the training structures, as the steps of an epoch met them
        self.heads = heads
        self._validations: list[EpochSums] = []
        self._validating = contextlib.ExitStack()

    @property
    def objective(self) -> Objective:
        """The objective of the present stage."""
        return cast(Objective, self.objectives[self.stage - 1])

    @property
    def rate(self) -> float:
        """Learning rate of the first group of parameters."""
        return self._optimizer.param_groups[0]["lr"]

    @property
    def validated(self) -> bool:
        """Whether the present epoch was validated."""
        return "valid_loss_mace" in self.row

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """mace's optimiser over the model's parameter groups, and the schedule of its learning rates."""
        self._optimizer = build_optimizer(self.model, self.part)
        self._trainable = [parameter for group in self._optimizer.param_groups for parameter in group["params"]]
        self.schedule = build_schedule(self._optimizer, self.part, self.stages.of_stage_one, self.steps_per_epoch)
        return self._optimizer

    def begin_stage_two(self) -> None:
        """The learning rate of stage two; from here on no schedule acts."""
        set_rates(self._optimizer, self.stages.swa_lr)

    def on_fit_start(self) -> None:
        """The moving average follows the weights to their device."""
        if self.ema is not None:
            self.ema.to(self.device)

    def on_train_epoch_start(self) -> None:
        """Start the epoch's sums."""
        set_training_mode(self._optimizer, True)
        self._sums = EpochSums()
        self.row = {"epoch": self.current_epoch, "lr": self.rate}
        if self.stages.swa:
            self.row["stage"] = self.stage

    def on_train_batch_start(self, batch: Any, batch_index: int) -> None:
        """Set the learning rate where the schedule changes it step by step."""
        if self.stage == 1:
            self.schedule.before_step(self.epochs_left)

    def training_step(self, batch: Any, batch_index: int) -> torch.Tensor:
        """Loss of a batch."""
        output = predict(self.model, batch, self.outputs, training=True)
        loss, terms = self.objective(output, batch, self.current_epoch)
        if not bool(torch.isfinite(loss.detach())):
            loader: Any = self.trainer.train_dataloader
            indices = list(loader.batch_sampler)[batch_index]
            refuse_loss(self.model, output, batch, loader.dataset, indices, self.global_step)
        self._sums.update(output, batch, loss, terms)
        return loss

    def backward(self, loss: torch.Tensor, *args: Any, **kwargs: Any) -> None:
        """Gradients of the parameters only: those of the positions, leaves too, would cost a tenth more."""
        loss.backward(inputs=self._trainable)

    def on_train_batch_end(self, output: Any, batch: Any, batch_index: int) -> None:
        """Update the moving average, as mace does after every step."""
        if self.ema is not None:
            self.ema.update()

    def on_validation_epoch_start(self) -> None:
        """Close the epoch's training sums and go over to the averaged weights."""
        self._close()
        set_training_mode(self._optimizer, False)
        self._validating.enter_context(self.weights_to_test())
        self._validating.enter_context(frozen(self.model))
        self._validations = [EpochSums(None if self.plotted is None else self.plotted()) for _ in self.heads]

    def validation_step(self, batch: GraphBatch, batch_index: int, dataloader_idx: int = 0) -> None:
        """Loss and errors of a batch of one head's set; forces need derivatives here too."""
        if not batch:  # other processes of a distributed run have one more
            return
        with torch.enable_grad():
            output = predict(self.model, batch, self.outputs)
        loaders: Any = self.trainer.val_dataloaders
        loader = loaders[dataloader_idx]
        check_finite(self.model, output, batch, loader.dataset, loader.batch_sampler.batches[batch_index])
        with torch.no_grad():
            loss, terms = self.objective(output, batch)
            kept = {name: output.get(name) for name in ("pde_residual", "charge_penalty")}
            others = {name: value.sum() for name, value in kept.items() if value is not None}
            # mace's value, Σ_batches loss / structures
            self._validations[dataloader_idx].update(
                output, batch, loss, terms, batch.num_graphs, **others, loss_mace=loss
            )

    def on_validation_epoch_end(self) -> None:
        """Close the sums. Best weights, patience and plateaus go by mace's value of the last head, as in mace."""
        self.validated_structures = 0.0
        for head, found in zip(self.heads, self._validations, strict=True):
            row, structures = found.row()
            self.validated_structures += structures
            if len(self.heads) > 1:
                self.row |= {f"valid_{head}_{name}": value for name, value in row.items()}
        self.row |= {f"valid_{name}": value for name, value in row.items()}
        self.valid_loss, self.errors, self.pairs = row["loss_mace"], found.errors, found.pairs
        self._validating.close()

    def on_train_epoch_end(self) -> None:
        """Step the schedule."""
        if self.stage == 1:
            self.schedule.after_epoch(self.valid_loss)

    def finish_row(self) -> None:
        """Close the training sums of an epoch without validation."""
        if self._sums.weight:
            self._close()

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_index: int) -> Any:
        """Batches move themselves."""
        return batch if not batch or batch["positions"].device == device else batch.to(device)

    def _close(self) -> None:
        self.row |= {f"train_{name}": value for name, value in self._sums.row()[0].items()}
        self._sums = EpochSums()

    @contextlib.contextmanager
    def weights_to_test(self) -> Iterator[None]:
        """A block in which the model has the moving average where there is one."""
        if self.ema is None:
            yield
            return
        with self.ema.average_parameters():
            yield
        self.ema.collected_params = None

    def averaged_weights(self) -> dict[str, torch.Tensor]:
        """{parameter: tensor} of the weights to test: the moving average where there is one."""
        names = [name for name, _ in self.model.named_parameters()]
        values = self.ema.shadow_params if self.ema is not None else list(self.model.parameters())
        return {name: value.detach().clone().contiguous() for name, value in zip(names, values, strict=True)}


class WholeSetModule(PotentialModule):
    """Trains a potential by L-BFGS, whose step evaluates the loss and its gradient up to 25 times.

    The loss is Σ_batches (structures in the batch / structures) · (loss of the batch), as in mace. A batch's graph is
    freed before the next one is made, so memory is that of a batch.
    """

    def on_train_batch_start(self, batch: Any, batch_index: int) -> None:
        """The metrics are those before the step."""
        super().on_train_batch_start(batch, batch_index)
        self._first = True

    def training_step(self, whole: WholeSet, batch_index: int) -> torch.Tensor:
        """Loss of the training set; its gradient waits for :meth:`backward`."""
        total, gradients = 0.0, [torch.zeros_like(parameter) for parameter in self._trainable]
        for indices, batch in whole.batches():
            batch = batch.to(self.device)
            share = batch.num_graphs / whole.num_graphs
            output = predict(self.model, batch, self.outputs, training=True)
            loss, terms = self.objective(output, batch, self.current_epoch)
            if not bool(torch.isfinite(loss.detach())):
                refuse_loss(self.model, output, batch, whole.dataset, indices, self.global_step)
            parts = torch.autograd.grad(share * loss, self._trainable, materialize_grads=True)
            for sum_, part in zip(gradients, parts, strict=True):
                sum_ += part
            total = total + share * loss.detach()
            if self._first:
                self._sums.update(output, batch, loss, terms, share)
        self._first, self._gradients = False, gradients
        return torch.as_tensor(total)

    def backward(self, loss: torch.Tensor, *args: Any, **kwargs: Any) -> None:
        """Hand the gradient over."""
        for parameter, gradient in zip(self._trainable, self._gradients, strict=True):
            parameter.grad = gradient

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_index: int) -> Any:
        """Validation batches move themselves; the training set moves batch by batch."""
        return super().transfer_batch_to_device(batch, device, dataloader_index) if isinstance(batch, dict) else batch

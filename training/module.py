"""The LightningModule of every potential: bare hosts and hosts with Φ train by the same code."""

import json

import lightning.pytorch as pl
import torch
from torch_ema import ExponentialMovingAverage

from phi_equivariant.errors import InputError
from training.errors import ErrorSums, freeze, predict, unfreeze
from training.schedules import build_schedule
from zoo import parameter_groups


class PotentialModule(pl.LightningModule):
    """Trains a potential.

    Parameters
    ----------
    model : torch.nn.Module
        Anything with mace's call signature.
    objective : training.losses.Objective
    options : argparse.Namespace
        mace's options for the optimiser, the schedule and the moving average.
    outputs : dict
        Which of forces, stress and virials the loss needs.
    steps_per_epoch : int
    """

    def __init__(self, model, objective, options, outputs, steps_per_epoch):
        super().__init__()
        self.model, self.objective, self.outputs = model, objective, outputs
        self.options, self.steps_per_epoch = options, steps_per_epoch
        self.ema = ExponentialMovingAverage(model.parameters(), decay=options.ema_decay) if options.ema else None
        self.schedule = None
        self.epochs_left = None  # a time limit sets it; None: all up to max_num_epochs
        self.row = {}  # metrics of the present epoch
        self.valid_loss = float("inf")
        self._sums, self._steps = {}, 0

    def configure_optimizers(self):
        """Adam or AdamW over the model's parameter groups, with mace's rates; weight decay only where mace has it."""
        options = self.options
        factors = json.loads(options.lr_params_factors)
        groups = []
        for group in parameter_groups(self.model):
            factor = factors.get(f"{group['name'].split('_')[0]}_lr_factor", 1.0)
            decay = options.weight_decay if group["decay"] else 0.0
            groups.append(
                {"name": group["name"], "params": group["params"], "lr": factor * options.lr, "weight_decay": decay}
            )
        check_groups(self.model, groups)
        self._trainable = [parameter for group in groups for parameter in group["params"]]
        kind = torch.optim.AdamW if options.optimizer == "adamw" else torch.optim.Adam
        # fused: the same update in one call for all parameters, half the time of a loop over them.
        optimizer = kind(groups, lr=options.lr, amsgrad=options.amsgrad, betas=(options.beta, 0.999), fused=True)
        self.schedule = build_schedule(optimizer, options, self.steps_per_epoch)
        return optimizer

    def on_fit_start(self):
        """The moving average follows the weights to their device."""
        if self.ema is not None:
            self.ema.to(self.device)

    def on_train_epoch_start(self):
        """Start the epoch's sums."""
        self._sums, self._steps = {}, 0
        self.row = {"epoch": self.current_epoch, "lr": self.optimizers().param_groups[0]["lr"]}

    def on_train_batch_start(self, batch, batch_index):
        """Set the learning rate where the schedule changes it step by step."""
        left = self.options.max_num_epochs - self.current_epoch
        self.schedule.before_step(left if self.epochs_left is None else min(left, self.epochs_left))

    def training_step(self, batch, batch_index):
        """Loss of a batch."""
        output = predict(self.model, batch, self.outputs, training=True)
        loss, terms = self.objective(output, batch, self.current_epoch)
        self._add(loss.detach(), terms, 1)
        return loss

    def backward(self, loss):
        """Gradients of the parameters only: those of the positions, leaves too, would cost a tenth more."""
        loss.backward(inputs=self._trainable)

    def on_train_batch_end(self, output, batch, batch_index):
        """Update the moving average, as mace does after every step."""
        if self.ema is not None:
            self.ema.update()

    def on_validation_epoch_start(self):
        """Close the epoch's training sums and go over to the averaged weights."""
        self._close("train")
        if self.ema is not None:
            self.ema.store()
            self.ema.copy_to()
        self._flags = freeze(self.model)
        self.errors = ErrorSums()
        self._mace_sum, self._structures = 0.0, 0

    def validation_step(self, batch, batch_index):
        """Loss and errors of a batch; forces need derivatives here too."""
        with torch.enable_grad():
            output = predict(self.model, batch, self.outputs)
        with torch.no_grad():
            loss, terms = self.objective(output, batch)
            self._add(loss, terms, batch.num_graphs)
            for name in ("pde_residual", "charge_penalty"):
                if name in output:
                    self._sums[name] = self._sums.get(name, 0.0) + output[name].sum()
            self.errors.update(output, batch)
            self._mace_sum = self._mace_sum + loss.detach()
            self._structures += batch.num_graphs

    def on_validation_epoch_end(self):
        """Close the sums. Best weights, patience and plateaus go by mace's value: Σ_batches loss / structures."""
        self._close("valid")
        self.valid_loss = float(self._mace_sum) / self._structures
        self.row |= {"valid_loss_mace": self.valid_loss, **self.errors.flat("valid")}
        self.validated_structures = self._structures
        self.log("valid_loss", self.valid_loss)
        unfreeze(self.model, self._flags)
        if self.ema is not None:
            self.ema.restore()
            self.ema.collected_params = None

    def on_train_epoch_end(self):
        """Step the schedule."""
        self.schedule.after_epoch(self.valid_loss)

    def finish_row(self):
        """Close the training sums of an epoch without validation."""
        if self._sums:
            self._close("train")

    def transfer_batch_to_device(self, batch, device, dataloader_index):
        """Batches move themselves."""
        return batch if batch["positions"].device == device else batch.to(device)

    def _add(self, loss, terms, weight):
        for name, value in {"loss": loss, **{f"term_{name}": term for name, term in terms.items()}}.items():
            self._sums[name] = self._sums.get(name, 0.0) + weight * value
        self._steps += weight

    def _close(self, split):
        self.row |= {f"{split}_{name}": float(value) / self._steps for name, value in self._sums.items()}
        self._sums, self._steps = {}, 0

    def averaged_weights(self):
        """{parameter: tensor} of the weights to test: the moving average where there is one."""
        names = [name for name, _ in self.model.named_parameters()]
        values = self.ema.shadow_params if self.ema is not None else list(self.model.parameters())
        return {name: value.detach().clone().contiguous() for name, value in zip(names, values, strict=True)}


def check_groups(model, groups):
    """Every trainable parameter must be in exactly one optimiser group.

    Raises
    ------
    InputError
    """
    counts = {}
    for group in groups:
        for parameter in group["params"]:
            counts[parameter] = counts.get(parameter, 0) + 1
    wrong = [name for name, p in model.named_parameters() if p.requires_grad and counts.get(p, 0) != 1]
    if wrong:
        raise InputError(f"these parameters are not in exactly one optimiser group: {', '.join(wrong)}.")

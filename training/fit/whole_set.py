"""Training by L-BFGS: one step per epoch, over the whole training set."""

from typing import Any

import torch

from training.data.order import WholeSet
from training.fit.lightning_module import PotentialModule
from training.fit.predict import predict, refuse_loss


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

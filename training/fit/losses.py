"""The training objective: mace's loss, losses on charges and dipoles, and the terms that regularise Φ."""

import copy

import torch

from training import distribution, mace_interface
from training.run import Loss, Phi


def _mean(total, count, shared):
    """total / count; ``shared``: of all processes' structures, scaled so that the mean over processes is that mean."""
    count = torch.as_tensor(count, dtype=total.dtype, device=total.device)
    processes = 1
    if shared:
        processes = distribution.size()
        torch.distributed.all_reduce(count)
    return total * processes / count.clamp(min=1)


def charge_loss(output, batch, shared=False):
    """Mean over labelled atoms of w (q − q_ref)², in e²; zero where the batch has no charges."""
    weight = batch["weight"] * batch["charges_weight"]  # (n_structures,)
    labelled = (batch["charges_weight"] != 0).to(weight.dtype)[batch["batch"]]  # (n_atoms,)
    squares = weight[batch["batch"]] * torch.square(output["charges"] - batch["charges"])
    return _mean(squares.sum(), labelled.sum(), shared)


def dipole_loss(output, batch, shared=False):
    """Mean over labelled structures and components of w (μ − μ_ref)², in (e·Å)²; zero where there are no dipoles.

    A periodic structure has no dipole (NaN): its label, which depends on where the cell is cut, does not count.
    """
    own = batch["dipole_weight"].view(-1, 3)  # (n_structures, 3)
    if output["dipole"] is None:  # of no structure: other processes may have some
        return _mean(own.new_zeros(()), 0, shared)
    labelled = (own != 0) & ~output["dipole"].isnan()
    difference = (output["dipole"] - batch["dipole"]).where(labelled, own.new_zeros(()))
    squares = batch["weight"][:, None] * own * torch.square(difference)
    return _mean(squares.sum(), labelled.sum(), shared)


def pde_loss(output, batch, shared=False):
    """Mean over structures of the Poisson residual R."""
    return _mean(output["pde_residual"].sum(), len(output["pde_residual"]), shared)


def net_charge_loss(output, batch, shared=False):
    """Mean over structures of the squared excess charge, in e²."""
    return _mean(output["charge_penalty"].sum(), len(output["charge_penalty"]), shared)


#: Terms beside mace's loss: name → function of output, batch and whether the batch is shared by several processes.
OWN_TERMS = {"charges": charge_loss, "dipole": dipole_loss, "pde": pde_loss, "net_charge": net_charge_loss}
#: Terms that wait for the end of the warm-up.
WARMED_UP = ("pde", "net_charge")


class Objective(torch.nn.Module):
    """mace's loss plus weighted own terms.

    Parameters
    ----------
    host_loss : torch.nn.Module
        A mace loss, called as ``loss(pred=..., ref=...)``; its buffers ``*_weight`` are the weights of its terms.
    weights : dict
        Weights of the terms of :data:`OWN_TERMS`; a term without weight is not computed.
    warmup_epochs : int
        Number of first epochs in which the terms of :data:`WARMED_UP` do not act in training.
    """

    def __init__(self, host_loss, weights, warmup_epochs=0):
        super().__init__()
        self.host_loss = host_loss
        self.weights = {name: float(weight) for name, weight in weights.items() if weight}
        self.warmup_epochs = warmup_epochs
        names = [name for name, _ in host_loss.named_buffers() if name.endswith("_weight")]
        # mace's losses return their sum only: a copy with all other weights at zero gives one term.
        self.host_terms = torch.nn.ModuleDict()
        for name in names:
            term = copy.deepcopy(host_loss)
            for other in names:
                if other != name:
                    getattr(term, other).zero_()
            self.host_terms[name.removesuffix("_weight")] = term

    def term_names(self):
        """Names of all terms, as in the metrics."""
        return [*self.host_terms, *self.weights]

    def forward(self, output, batch, epoch=None):
        """The loss and its terms.

        Parameters
        ----------
        output, batch : dict
            A model's output and the labels.
        epoch : int or None
            Epoch, from 0, of training: for the warm-up, and to average over the batches of all processes of a
            distributed run. None, for validation, counts every term, so that losses of all epochs compare.

        Returns
        -------
        total, terms
            The loss, and {name: weighted term, detached} whose sum it is.
        """
        if "stress_weight" in dict(self.host_loss.named_buffers()):
            # With Φ an open structure has no stress (None, or NaN beside periodic ones): no error either.
            stress = output.get("stress")
            stress = batch["stress"] if stress is None else torch.where(stress.isnan(), batch["stress"], stress)
            output = {**output, "stress": stress}
        shared = epoch is not None and distribution.size() > 1
        total = self.host_loss(pred=output, ref=batch, ddp=shared)
        with torch.no_grad():
            terms = {name: term(pred=output, ref=batch, ddp=shared) for name, term in self.host_terms.items()}
        for name, weight in self.weights.items():
            if epoch is not None and epoch < self.warmup_epochs and name in WARMED_UP:
                weight = 0.0
            term = weight * OWN_TERMS[name](output, batch, shared)
            total = total + term
            terms[name] = term.detach()
        return total, terms


def build_objective(loss: Loss, phi: Phi | None, stage: int = 1) -> Objective:
    """The objective of a run in stage one or two, which has its own weights of mace's terms and of dipoles."""
    weights = {name: loss.weight(name, stage) for name in ("charges", "dipole")}
    if phi is not None:
        weights |= {"pde": phi.pde_weight, "net_charge": phi.net_charge_weight}
    host_loss = mace_interface.loss_function(loss, stage)
    return Objective(host_loss, weights, 0 if phi is None else phi.pde_warmup_epochs)

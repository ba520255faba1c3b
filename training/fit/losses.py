"""The training objective: mace's loss and terms of our own, and which labels it needs."""

import copy
from collections.abc import Collection, Mapping

import torch

from phi_equivariant.errors import InputError
from training import distribution, mace_interface
from training.data.needs import Need, Needs
from training.fit.terms import TERMS, Output, Tensors
from training.quantities import TARGETS
from training.run import Loss, Phi

#: Of mace's losses: entries of ``atoms.info`` that they do not multiply all of their terms by.
IGNORED_WEIGHTS = {
    "huber": ("config_weight", "config_energy_weight", "config_forces_weight", "config_stress_weight"),
    "universal": ("config_weight",),
    "l1l2energyforces": ("config_weight", "config_forces_weight"),
}


class Objective(torch.nn.Module):
    """mace's loss plus weighted own terms.

    host_loss : a mace loss, called as ``loss(pred=..., ref=...)``; its buffers ``*_weight`` are the weights of its
        terms
    weights : weights of the terms of :data:`training.fit.terms.TERMS`; a term without weight is not computed
    warmup_epochs : number of first epochs in which the terms that regularise Φ do not act in training
    """

    def __init__(self, host_loss: torch.nn.Module, weights: Mapping[str, float], warmup_epochs: int = 0) -> None:
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

    def labels(self) -> list[str]:
        """Names of the labels that weigh."""
        of_mace = [name for name in self.host_terms if float(getattr(self.host_loss, f"{name}_weight"))]
        return [*of_mace, *(name for name in self.weights if TERMS[name].label is not None)]

    def describe(self) -> str:
        """Its terms and their weights, for the log."""
        of_mace = [f"{name} {float(getattr(self.host_loss, f'{name}_weight')):g}" for name in self.host_terms]
        own = [f"{name} {weight:g} per {TERMS[name].unit}" for name, weight in self.weights.items()]
        return f"{', '.join([*of_mace, *own])} ({type(self.host_loss).__name__})"

    def forward(
        self, output: Output, batch: Tensors, epoch: int | None = None
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The loss and its terms.

        output, batch : a model's output and the labels
        epoch : epoch, from 0, of training: for the warm-up, and to average over the batches of all processes of a
            distributed run. None, for validation, counts every term, so that losses of all epochs compare

        Returns the loss, and {name: weighted term, detached} whose sum it is.
        """
        shared = epoch is not None and distribution.size() > 1
        compared = self._where_labelled(output, batch)
        total = self.host_loss(pred=compared, ref=batch, ddp=shared)
        with torch.no_grad():
            terms = {name: term(pred=compared, ref=batch, ddp=shared) for name, term in self.host_terms.items()}
        for name, weight in self.weights.items():
            term = TERMS[name]
            if epoch is not None and epoch < self.warmup_epochs and term.waits:
                weight = 0.0
            value = weight * term.loss(output, batch, shared)
            total = total + value
            terms[name] = value.detach()
        return total, terms

    def _where_labelled(self, output: Output, batch: Tensors) -> Output:
        """The output with labels in place of predictions that have none that counts: no error, and no gradient.

        Not all of mace's losses multiply by the weights of labels, and an absent one is zero in mace's batches; a
        stress that a structure does not have is None, or NaN beside others.
        """
        compared = dict(output)
        for name in self.host_terms:
            predicted, label = output.get(name), TARGETS[name]
            counted = label.counted(batch)
            compared[name] = batch[name] if predicted is None else torch.where(counted, predicted, batch[name])
        return compared


def build_objective(loss: Loss, phi: Phi | None, stage: int = 1) -> Objective:
    """The objective of a run in stage one or two, which has its own weights of mace's terms and of dipoles."""
    weights = {name: loss.weight(name, stage) for name, term in TERMS.items() if term.label}
    if phi is not None:
        weights |= {name: getattr(phi, f"{name}_weight") for name, term in TERMS.items() if not term.label}
    host_loss = mace_interface.loss_function(loss, stage)
    return Objective(host_loss, weights, 0 if phi is None else phi.pde_warmup_epochs)


def weight_options(loss: Loss, name: str) -> list[str]:
    """Names of the options that weigh a label in stages one and two; some have one for both."""
    return [option for option in (f"{name}_weight", f"swa_{name}_weight") if hasattr(loss, option)]


def needs(
    loss: Loss, objectives: Mapping[int, Objective], given: Collection[str], optional: Collection[str] = ()
) -> Needs:
    """The labels that the data must have.

    ``objectives`` : {stage: objective}; ``given`` : options that are not at their defaults; ``optional`` : labels that
    need not be there unless their weights are given.

    InputError if no label weighs.
    """
    found = []
    for name, label in TARGETS.items():
        stages = [stage for stage, objective in objectives.items() if name in objective.labels()]
        weighed = tuple(dict.fromkeys(weight_options(loss, name)[:stage][-1] for stage in stages))
        if weighed:
            asked = loss.loss == name or any(option in given for option in (*weighed, f"{name}_key"))
            found.append(Need(label, weighed, asked))
    if not found:
        raise InputError("--energy_weight, --forces_weight and so on: all are 0: nothing would be trained. Give one.")
    may_lack = tuple(name for name in optional if not {f"{name}_weight", f"swa_{name}_weight"} & set(given))
    return Needs(loss.loss, tuple(found), IGNORED_WEIGHTS.get(loss.loss, ()), may_lack)


def idle_weights(loss: Loss, objectives: Mapping[int, Objective], given: Collection[str]) -> list[str]:
    """Lines for the log: weights of labels that were given and that no term of the loss has, as in mace."""
    lines = []
    for name, label in TARGETS.items():
        for stage, option in ((1, f"{name}_weight"), (2, f"swa_{name}_weight")):
            if option not in given or not getattr(loss, option):
                continue
            if stage not in objectives:
                lines.append(f"--{option} does not act: there is no stage two without --swa")
            elif name not in objectives[stage].labels():
                where = " in stage two" if stage == 2 else ""
                lines.append(f"--{option} does not act: --loss {loss.loss} has no {label.plural}{where}, as in mace")
    return lines

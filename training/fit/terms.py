"""Terms of the loss beside mace's: on labels that mace's losses do not train, and those that regularise Φ."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch

from training import distribution
from training.quantities import OF_PHI, Label

Tensors = Mapping[str, torch.Tensor]
Output = Mapping[str, torch.Tensor | None]


def _mean(total: torch.Tensor, count: torch.Tensor | int, shared: bool) -> torch.Tensor:
    """total / count; ``shared``: of all processes' structures, scaled so that the mean over processes is that mean."""
    count = torch.as_tensor(count, dtype=total.dtype, device=total.device)
    processes = 1
    if shared:
        processes = distribution.size()
        torch.distributed.all_reduce(count)
    return total * processes / count.clamp(min=1)


def squares(label: Label, output: Output, batch: Tensors, shared: bool = False) -> torch.Tensor:
    """Mean over labelled components of w (x − x_ref)², w = weight of the structure · weight of its label.

    Zero where no label counts; what a structure does not have (NaN) counts neither above nor below.

    label : whose name output and batch share
    output : a model's output; None for a quantity that no structure of the batch has, which others' may
    batch : the labels, (n_structures or n_atoms, *label.shape), with their weights
    shared : whether the mean is over the batches of all processes
    """
    predicted, reference = output[label.name], batch[label.name]
    zero = reference.new_zeros(())
    if predicted is None:
        return _mean(zero, 0, shared)
    counted = label.counted(batch).expand_as(reference)
    weight = batch[f"{label.name}_weight"].view(len(batch["weight"]), -1) * batch["weight"][:, None]
    weight = weight.view(-1, *(label.shape if weight.shape[1] > 1 else [1] * len(label.shape)))
    weight = weight[batch["batch"]] if label.per_atom else weight
    errors = weight * torch.square((predicted - reference).where(counted, zero))
    return _mean(errors.sum(), counted.sum(), shared)


def _mean_over_structures(name: str, output: Output, batch: Tensors, shared: bool = False) -> torch.Tensor:
    """Mean over structures of an output (n_structures,) that wants to be zero."""
    values = output[name]
    assert values is not None  # a model that has such a term gives it for every structure
    return _mean(values.sum(), len(values), shared)


@dataclass(frozen=True)
class Term:
    """A term of the loss beside mace's.

    name : of the option ``<name>_weight`` that it is weighed by, and of the metric ``term_<name>``
    loss : function of output, batch and whether the batch is shared by several processes
    unit : of the loss; that of the weight is its inverse
    label : what it compares with; None for a term that regularises Φ
    """

    name: str
    loss: Callable[[Output, Tensors, bool], torch.Tensor]
    unit: str
    label: Label | None = None

    @property
    def waits(self) -> bool:
        """Whether it waits for the end of the warm-up."""
        return self.label is None


#: Terms beside mace's loss, by name.
TERMS: dict[str, Term] = {
    term.name: term
    for term in (
        *(Term(name, partial(squares, label), f"({label.measures[0].unit})²", label) for name, label in OF_PHI.items()),
        Term("pde", partial(_mean_over_structures, "pde_residual"), "e² or eV"),
        Term("net_charge", partial(_mean_over_structures, "charge_penalty"), "e²"),
    )
}

"""The charge model of a Φ-Module: heads for what it needs of every atom, and what charges and dipoles come of that."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from phi_equivariant.charge_models import qeq, sqe
from phi_equivariant.charge_models.energy import ChargeEnergy, Response
from phi_equivariant.charge_models.flow import Conductance, FlowGraph
from phi_equivariant.charge_models.induced import polarise
from phi_equivariant.charge_models.response_heads import ResponseHeads
from phi_equivariant.config import PhiConfig
from phi_equivariant.kept import keep, recall
from phi_equivariant.operators.base import Bound, Operator, Part
from phi_equivariant.solvers.kept_inverse import Last
from phi_equivariant.structures import Structures

_NAMES = {
    "direct": (),
    "qeq": ("electronegativity", "hardness"),
    "sqe": ("electronegativity", "hardness", "conductance"),
}
# Atoms up to which matrices are factorised where dipoles do not respond.
_FACTORISED_TO = {"qeq": qeq.FACTORISED_TO, "sqe": sqe.FACTORISED_TO}
_MOVED = 0.5  # Å between two calls, up to which what one left helps the other


class ChargeModel(torch.nn.Module):
    """Charges and dipoles of channel 0 that respond to their potential, by the minimum of one energy.

    ``qeq`` as in :func:`equilibrate`, ``sqe`` as in :func:`split_charges`, ``direct`` with dipoles that respond as in
    :func:`polarise`.

    Parameters
    ----------
    layer_irreps: irreps of each tapped layer
    atomic_numbers: elements, in the order of ``species``
    r_max: the host's cut-off radius in Å
    config: ``PhiConfig`` that ``responds``
    start_scale: of the electronegativities
    """

    def __init__(
        self,
        layer_irreps: Sequence[str],
        atomic_numbers: Sequence[int],
        r_max: float,
        config: PhiConfig,
        start_scale: float,
    ) -> None:
        super().__init__()
        self.kind, self.polarizable = config.charge_model, config.polarizable
        names = [*_NAMES[self.kind], *(["polarisability"] if self.polarizable else [])]
        self.heads = ResponseHeads(layer_irreps, atomic_numbers, config.hidden, names, start_scale)
        self.conductance = Conductance(r_max) if self.kind == "sqe" else None

    @property
    def takes_charges(self) -> bool:
        """Whether it starts from charges of the heads."""
        return self.kind != "qeq"

    def bind(self, operator: Operator, structures: Structures) -> Bound:
        """The operator at structures, as a matrix where that is solved faster."""
        edges = self.conductance is not None
        if self.polarizable:
            return operator.at(structures, edges=edges)
        return operator.at(structures, matrix=True, up_to=_FACTORISED_TO[self.kind], edges=edges)

    def forward(
        self,
        of_heads: Mapping[str, torch.Tensor],
        bound: Bound,
        charges: torch.Tensor | None,
        dipoles: torch.Tensor | None,
        order: int,
        repeated: bool,
    ) -> tuple[Response, torch.Tensor | None]:
        """Charges and dipoles of least energy, in the structures' external field where there is one.

        Parameters
        ----------
        of_heads: what ``heads`` read of every atom, by name
        bound: what ``bind`` made
        charges: q⁰ (n_atoms,) in e, if it ``takes_charges``
        dipoles: permanent μ⁰ (n_atoms, 3) in e·Å
        order: of derivatives, as for :func:`split_charges`
        repeated: whether calls follow one another with almost the same atoms, so that an iteration starts where the
            last one ended

        Returns
        -------
        response: ``Response``
        flow: (n_atoms, 3) in e·Å; summed over the edges of a structure, charge that has flown times the way it went;
            None but with ``sqe`` in a batch with periodic structures
        """
        structures = bound.structures
        given = {name: of_heads[name] for name in self.heads.names}
        moments = {"charges": charges, "dipoles": dipoles}
        given |= {name: values for name, values in moments.items() if values is not None}
        without = set() if self.polarizable or dipoles is not None else {"dipoles", "gradient"}
        names = [field.name for field in dataclasses.fields(Response) if field.name not in without]
        flows = self.conductance is not None and any(structures.n_periodic)
        lasts = self._lasts(structures) if repeated else None
        numbers = itertools.count()

        def of_part(part: Part, *values: torch.Tensor) -> tuple[torch.Tensor, ...]:
            last = None if lasts is None else lasts.setdefault(next(numbers), Last())
            response, graph = self._respond(part, dict(zip(given, values, strict=True)), order, last)
            found = tuple(getattr(response, name) for name in names)
            if not flows or graph is None:
                return found
            # Half of each edge's flow is in each of its two listings.
            moved = graph.flows(response.level)[:, None] * part.structures.edge_vectors()
            moved = torch.zeros_like(part.structures.positions).index_add(0, graph.receiver, moved)
            return *found, *part.structures.share.leave(moved)

        found = bound.by_part(of_part, *given.values())
        parts: dict[str, Any] = dict.fromkeys(without) | dict(zip(names, found, strict=False))
        return Response(**parts), found[-1] if flows else None

    def _respond(
        self, part: Part, given: dict[str, torch.Tensor], order: int, last: Last | None
    ) -> tuple[Response, FlowGraph | None]:
        """The response of structures that are computed together, and the graph of ``sqe``."""
        structures, field = part.structures, None
        chi = given.get("electronegativity")
        if structures.external_field is not None:
            field = structures.external_field[structures.batch]  # (n_atoms, 3)
            outside = -(field * structures.positions).sum(-1)
            chi = outside if chi is None else chi + outside
        names = ("hardness", "dipoles", "polarisability")
        of_atoms = {name: given[name] for name in names if name in given}
        energy = ChargeEnergy(part, structures.layout, electronegativity=chi, field=field, **of_atoms)
        if self.kind == "qeq":
            return qeq.equilibrate(energy, structures.total_charge, order, last=last), None
        if self.conductance is None:
            return polarise(energy, given["charges"], order, last=last), None
        assert structures.edge_index is not None  # ``bind`` asks for them
        lengths = structures.edge_lengths()
        graph = FlowGraph(
            structures.edge_index,
            self.conductance(given["conductance"], structures.edge_index, lengths, structures.share),
            structures.layout,
            structures.share,
        )
        return sqe.split_charges(energy, graph, given["charges"], order, last=last), graph

    def _lasts(self, structures: Structures) -> dict[int, Last]:
        """What iterations left for these atoms at almost these places, by part."""
        here = structures.species, structures.positions.detach().clone()
        kept = recall(self)
        found: dict[int, Last] = {}
        if kept is not None and kept[0][1].device == here[1].device and torch.equal(kept[0][0], here[0]):
            # Of most atoms: some may have been wrapped back into the cell.
            moved = float((here[1] - kept[0][1]).norm(dim=1).median())
            found = kept[1] if moved < _MOVED else found
        keep(self, (here, found))
        return found

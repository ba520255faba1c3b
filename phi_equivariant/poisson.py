"""Lφ = ρ of a batch: the two parameterisations on the two operators, by dense algebra or without a matrix."""

import dataclasses

import torch

from phi_equivariant.batching import PaddedLayout
from phi_equivariant.errors import InputError
from phi_equivariant.solvers.spectral import ModeWindow


@dataclasses.dataclass(frozen=True)
class Structures:
    """Atoms and cells of a batch: positions (n_atoms, 3) in Å, species (n_atoms,), batch (n_atoms,), ptr
    (n_structures + 1,), edge_index (2, n_edges), edge_lengths (n_edges,) in Å or None where edges are not needed, cell
    (n_structures, 3, 3) in Å or None, periodic (n_structures,), total_charge (n_structures,) in e."""

    positions: torch.Tensor
    species: torch.Tensor
    batch: torch.Tensor
    ptr: torch.Tensor
    edge_index: torch.Tensor
    edge_lengths: torch.Tensor | None
    cell: torch.Tensor | None
    periodic: torch.Tensor
    total_charge: torch.Tensor
    dense: bool = True

    def __post_init__(self):
        object.__setattr__(self, "layout", PaddedLayout(self.batch, self.ptr))

    def split(self, largest):
        """Structures of at most ``largest`` (n_structures,) atoms together, to be computed with matrices, each larger
        one alone, without: a list of (atoms, structures)."""
        large = self.layout.counts > largest
        if self.layout.n_structures == 1 or not bool(large.any()):
            alone = dataclasses.replace(self, dense=not bool(large.any()))
            return [(torch.arange(len(self.batch), device=self.batch.device), alone)]
        groups = [~large] if bool((~large).any()) else []
        for index in large.nonzero()[:, 0]:
            groups.append(torch.arange(len(large), device=large.device) == index)
        return [self._select(group, dense=not bool((group & large).any())) for group in groups]

    def _select(self, group, dense):
        """(atoms, structures) where group (n_structures,) is True."""
        inside = group[self.batch]  # (n_atoms,)
        atoms, edges = inside.nonzero()[:, 0], inside[self.edge_index[0]]
        counts = self.layout.counts[group]
        new = Structures(
            positions=self.positions[atoms],
            species=self.species[atoms],
            batch=torch.arange(len(counts), device=counts.device).repeat_interleave(counts),
            ptr=torch.nn.functional.pad(counts.cumsum(0), (1, 0)),
            edge_index=(inside.cumsum(0) - 1)[self.edge_index[:, edges]],
            edge_lengths=None if self.edge_lengths is None else self.edge_lengths[edges],
            cell=None if self.cell is None else self.cell[group],
            periodic=self.periodic[group],
            total_charge=self.total_charge[group],
            dense=dense,
        )
        return atoms, new


def graph_fields(fields, structures, operator, response, config, second_order, repeated):
    """Fields on the graph Laplacian.

    Parameters
    ----------
    fields: (n_atoms, n_fields, channels), what the heads give
    structures: ``Structures``, one alone if it is computed without matrices
    operator: ``GraphLaplacian``; response: a response or None; config: ``PhiConfig``
    second_order: whether second derivatives are wanted
    repeated: whether calls follow one another with almost the same atoms, so that an iteration starts where the last
        one ended

    Returns
    -------
    potential, charges: (n_atoms, channels), φ in V and ρ in e
    residual: (n_atoms,), each atom's share of the Poisson residual
    net: (n_structures, channels), Σρ before projection
    """
    layout, edge_index = structures.layout, structures.edge_index
    weights = operator.edge_weights(structures.edge_lengths)

    def laplacian(field):
        return operator.apply(weights, edge_index, field)

    columns = fields.flatten(1)  # (n_atoms, n_fields * channels)
    if response is None:
        pass
    elif structures.dense:
        matrix = operator.matrix(weights, edge_index, layout)
        if config.low_pass is not None:
            matrix = matrix * operator.log_weight.exp()
        columns = layout.unpad(response.apply(matrix, layout.pad(columns), layout, second_order))
    elif _needs_low_pass(response, structures, config):
        columns = response.solve(laplacian, columns, second_order, structures.species if repeated else None)
    fields = columns.reshape(fields.shape)
    potential = fields[:, 0]
    induced = laplacian(potential)
    if config.poisson == "exact":
        charges, residual = induced, torch.zeros_like(induced[:, 0])
    else:
        charges = laplacian(fields[:, 1])
        residual = (induced - charges).square().sum(-1)
    return potential, charges, residual, layout.sum(charges)


def coulomb_fields(fields, structures, operator, response, config, second_order, repeated):
    """Fields of Gaussian charges; parameters and results as for ``graph_fields``, operator: ``GaussianCoulomb``."""
    n_fields, channels = fields.shape[1:]
    layout = structures.layout
    if structures.dense:
        matrix = operator.matrix(
            structures.positions, structures.species, layout, structures.cell, structures.periodic
        )  # (n_structures, n_max, n_max)

        def product(values):
            return layout.unpad(matrix @ layout.pad(values))

    else:
        cell = structures.cell[0] if bool(structures.periodic.any()) else None
        product = operator.product(structures.positions, structures.species, cell)
    ones = torch.ones_like(fields[:, :1, 0])  # (n_atoms, 1)
    columns = torch.cat([fields.flatten(1), ones], dim=1)
    if response is None:
        pass
    elif structures.dense:
        columns = layout.unpad(
            _respond(matrix, layout.pad(columns), structures.periodic, layout, response, second_order)
        )
    elif _needs_low_pass(response, structures, config):
        known = structures.species if repeated else None
        columns = _respond_without_matrix(product, columns, cell is not None, response, second_order, known)
    columns, direction = columns[:, :-1], columns[:, -1:]
    net = layout.sum(columns)  # (n_structures, n_fields * channels)
    if config.charge_constraint == "project":
        wanted = torch.zeros_like(net).unflatten(-1, (n_fields, channels))
        wanted[:, :, 0] = structures.total_charge[:, None]
        share = (wanted.flatten(1) - net) / layout.sum(direction)
        columns = columns + direction * share[layout.batch]
    net = net.reshape(-1, n_fields, channels)[:, -1]
    columns = columns.unflatten(-1, (n_fields, channels))
    source, charges = columns[:, 0], columns[:, -1]  # Lφ and ρ, the same if exact
    if config.poisson == "exact":
        potential = product(source)
        residual = torch.zeros_like(charges[:, 0])
    else:
        potential, induced = product(columns.flatten(1)).unflatten(-1, (n_fields, channels)).unbind(1)
        residual = ((source - charges) * (potential - induced)).sum(-1)
    return potential, charges, residual, net


def _needs_low_pass(response, structures, config):
    """Whether f is not 1 on a structure that is too large for dense algebra; InputError if that needs its modes."""
    if not isinstance(response, ModeWindow):
        return True
    if config.num_modes >= structures.layout.n_max:
        return False
    raise InputError(
        f"num_modes is {config.num_modes} and a structure has {structures.layout.n_max} atoms, more than dense_limit="
        f"{config.dense_limit}: the level of the window, Σf = k, takes all eigenvalues. Use low_pass or all modes "
        f"(num_modes=None), or dense_limit={structures.layout.n_max} where memory and time allow."
    )


def _respond(matrix, columns, periodic, layout, response, second_order):
    """f(L) applied to columns (n_structures, n_max, c).

    Periodic structures: with Π = 1 − 11ᵀ/n, L is the inverse of ΠPΠ among neutral charges and zero on the uniform
    one, f(L)a = ā + Π f(L) Πa. P itself will not do: next to the background it calls the uniform charge the
    roughest of all, f(L)1 all but vanishes, and no total charge can be projected along it.
    """
    mean = torch.zeros_like(columns[:, :1])
    windowed = isinstance(response, ModeWindow)
    if bool(periodic.any()):
        inside = (layout.mask & periodic[:, None]).to(columns.dtype)  # (n_structures, n_max)
        uniform = inside / inside.sum(1, keepdim=True).clamp(min=1).sqrt()  # of norm 1, or 0 where open
        mean = uniform[:, :, None] * (uniform[:, None, :] @ columns)
        columns = columns - mean
        row = uniform[:, None, :] @ matrix
        across = uniform[:, :, None] * (row - 0.5 * (row @ uniform[:, :, None]) * uniform[:, None, :])
        # The uniform mode counts as one of k: it is put far above all others, where f = 1.
        top = matrix.detach().abs().sum(-1).amax(-1) + (40 * response.width if windowed else 0.0)
        matrix = matrix - across - across.mT + torch.einsum("g,gi,gj->gij", top, uniform, uniform)
    if windowed:
        # The smooth modes are the lowest of L, so the highest of P = L⁻¹.
        matrix = -matrix
    return mean + response.apply(matrix, columns, layout, second_order)


def _respond_without_matrix(product, columns, periodic, response, second_order, known):
    """The same for one structure, with a low-pass: columns (n_atoms, c)."""
    if not periodic:
        return response.solve(product, columns, second_order, known)

    def neutral(values):
        return values - values.mean(0)

    mean = columns.mean(0)
    return mean + response.solve(lambda values: neutral(product(neutral(values))), columns - mean, second_order, known)

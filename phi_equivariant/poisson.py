"""Lφ = ρ of a batch: the two parameterisations, where L is applied and where its inverse P is, and charge models."""

import dataclasses
from collections.abc import Callable, Mapping

import torch

from phi_equivariant.charge_models.model import ChargeModel
from phi_equivariant.config import PhiConfig
from phi_equivariant.errors import InputError
from phi_equivariant.operators.base import Bound, Part
from phi_equivariant.solvers.spectral import LowPass, ModeWindow
from phi_equivariant.structures import Structures

Filter = Callable[[torch.Tensor], torch.Tensor]  # f(L), as a map of (n_atoms, c)


@dataclasses.dataclass(frozen=True)
class Fields:
    """A solution of Poisson's equation.

    Parameters
    ----------
    potential, charges: (n_atoms, channels), φ in V and ρ in e
    energy: (n_atoms,), each atom's share of the energy of all channels, in eV
    residual: (n_atoms,), each atom's share of the Poisson residual
    net: (n_structures, channels), Σρ before projection, in e
    dipoles: (n_atoms, 3) of channel 0 in e·Å, permanent and induced; None without
    flow: (n_atoms, 3) of ``ChargeModel`` in e·Å, and source: (n_atoms,) in e, the charges that it has flown from
    """

    potential: torch.Tensor
    charges: torch.Tensor
    energy: torch.Tensor
    residual: torch.Tensor
    net: torch.Tensor
    dipoles: torch.Tensor | None = None
    flow: torch.Tensor | None = None
    source: torch.Tensor | None = None

    @classmethod
    def of(
        cls,
        potential: torch.Tensor,
        charges: torch.Tensor,
        net: torch.Tensor,
        residual: torch.Tensor | None = None,
        dipoles: torch.Tensor | None = None,
        gradient: torch.Tensor | None = None,
    ) -> "Fields":
        """Those of charges, and dipoles (n_atoms, channels, 3), that do not respond: E = ½ Σ (ρφ + μ·∇φ)."""
        energy = 0.5 * (potential * charges).sum(-1)
        if dipoles is not None and gradient is not None:
            energy = energy + 0.5 * (dipoles * gradient).sum((-2, -1))
        residual = torch.zeros_like(energy) if residual is None else residual
        return cls(potential, charges, energy, residual, net, None if dipoles is None else dipoles[:, 0])

    def without_uniform_part(self, uniform: torch.Tensor, structures: Structures) -> "Fields":
        """Those of P less c for every pair of atoms, where channel 0 sums to the total charge: φ − cQ, E − ½ cQ².

        Parameters
        ----------
        uniform: c of ``Operator.uniform_part``, (n_structures,) in V/e
        structures: ``Structures``
        """
        level = (uniform * structures.total_charge)[structures.batch]  # (n_atoms,)
        shift = torch.nn.functional.pad(level[:, None], (0, self.potential.shape[1] - 1))
        energy = self.energy - 0.5 * level * self.charges[:, 0]
        return dataclasses.replace(self, potential=self.potential - shift, energy=energy)


def fields_by_laplacian(heads: torch.Tensor, laplacian: Bound, apply_filter: Filter, config: PhiConfig) -> Fields:
    """φ = f(L) a, with ρ = Lφ where exact, ρ = L f(L) b where learned.

    Parameters
    ----------
    heads: (n_atoms, n_fields, channels), a in V, and b if learned
    laplacian: L; apply_filter: f(L)
    config: ``PhiConfig``
    """
    fields = apply_filter(heads.flatten(1)).reshape(heads.shape)
    potential = fields[:, 0]
    induced = laplacian.product(potential)
    if config.poisson == "exact":
        return Fields.of(potential, induced, laplacian.structures.sum(induced))
    charges = laplacian.product(fields[:, 1])
    residual = (induced - charges).square().sum(-1)
    return Fields.of(potential, charges, laplacian.structures.sum(charges), residual)


def fields_by_potential(
    heads: torch.Tensor,
    potential_of: Bound,
    apply_filter: Filter,
    config: PhiConfig,
    dipoles: torch.Tensor | None = None,
) -> Fields:
    """ρ = f(L) a and φ = Pρ where exact, φ = P f(L) a and ρ = f(L) b where learned; what f(L) gives is shifted along
    f(L)1 to the total charge if the constraint is ``project``.

    Parameters
    ----------
    heads: (n_atoms, n_fields, channels), in e
    potential_of: P; apply_filter: f(L)
    config: ``PhiConfig``
    dipoles: (n_atoms, channels, 3) in e·Å, whose potential joins that of the charges; with ``exact`` only
    """
    n_fields, channels = heads.shape[1:]
    structures = potential_of.structures
    columns = apply_filter(torch.cat([heads.flatten(1), torch.ones_like(heads[:, :1, 0])], dim=1))
    columns, direction = columns[:, :-1], columns[:, -1:]
    net = structures.sum(columns)  # (n_structures, n_fields * channels)
    if config.charge_constraint == "project":
        wanted = torch.zeros_like(net).unflatten(-1, (n_fields, channels))
        wanted[:, :, 0] = structures.total_charge[:, None]
        share = (wanted.flatten(1) - net) / structures.sum(direction)
        columns = columns + direction * share[structures.batch]
    net = net.unflatten(-1, (n_fields, channels))[:, -1]
    columns = columns.unflatten(-1, (n_fields, channels))
    source, charges = columns[:, 0], columns[:, -1]  # Lφ and ρ, the same if exact
    if dipoles is not None:
        potential, gradient = potential_of.joint(charges, dipoles)
        return Fields.of(potential, charges, net, dipoles=dipoles, gradient=gradient)
    if config.poisson == "exact":
        return Fields.of(potential_of.product(charges), charges, net)
    potential, induced = potential_of.product(columns.flatten(1)).unflatten(-1, (n_fields, channels)).unbind(1)
    residual = ((source - charges) * (potential - induced)).sum(-1)
    return Fields.of(potential, charges, net, residual)


def fields_by_charge_model(
    model: ChargeModel,
    given: Mapping[str, torch.Tensor],
    heads: torch.Tensor | None,
    potential_of: Bound,
    config: PhiConfig,
    dipoles: torch.Tensor | None,
    order: int,
    repeated: bool,
) -> Fields:
    """Channel 0 responds by a charge model; the others, where there are some, are neutral and do not.

    Parameters
    ----------
    model: ``ChargeModel``; given: what its heads read
    heads: (n_atoms, 1, channels) in e, without channel 0 where the model does not start from charges; None for none
    potential_of: P
    config: ``PhiConfig``
    dipoles: permanent, (n_atoms, channels, 3) in e·Å
    order, repeated: as for ``ChargeModel``
    """
    structures = potential_of.structures
    net = structures.total_charge[:, None][:, : 0 if model.takes_charges else 1]
    charges = structures.positions.new_zeros((len(structures.positions), 0))
    if heads is not None:
        charges, of_heads = heads[:, 0], structures.sum(heads[:, 0])
        net = torch.cat([net, of_heads], dim=1)  # what is found for the total charge has no other
        if config.charge_constraint == "project":
            wanted = torch.nn.functional.pad(structures.total_charge[:, None], (0, config.channels - 1))
            share = (wanted[:, -of_heads.shape[1] :] - of_heads) / structures.layout.counts[:, None]
            charges = charges + share[structures.batch]
    start = charges[:, 0] if model.takes_charges else None
    others = charges[:, 1:] if model.takes_charges else charges
    permanent = None if dipoles is None else dipoles[:, 0]
    response, flow = model(given, potential_of, start, permanent, order, repeated)
    potential, charges, energy = response.potential[:, None], response.charges[:, None], response.node_energy
    if config.channels > 1:
        if dipoles is None:
            fixed = Fields.of(potential_of.product(others), others, net)
        else:
            of_others, gradient = potential_of.joint(others, dipoles[:, 1:])
            fixed = Fields.of(of_others, others, net, dipoles=dipoles[:, 1:], gradient=gradient)
        potential = torch.cat([potential, fixed.potential], dim=1)
        charges, energy = torch.cat([charges, others], dim=1), energy + fixed.energy
    return Fields(potential, charges, energy, torch.zeros_like(energy), net, response.dipoles, flow, start)


def filtered(
    spectral_filter: LowPass | ModeWindow | None,
    operator: Bound,
    columns: torch.Tensor,
    second_order: bool,
    repeated: bool,
    config: PhiConfig,
) -> torch.Tensor:
    """f(L) applied to columns (n_atoms, c); where L has no matrix, by conjugate gradients.

    Parameters
    ----------
    spectral_filter: f, 1 where None
    operator: L or P, with matrices
    second_order: whether second derivatives are wanted
    repeated: whether calls follow one another with almost the same atoms, so that an iteration starts where the last
        one ended
    """
    if spectral_filter is None:
        return columns

    def of_part(part: Part, columns: torch.Tensor) -> tuple[torch.Tensor]:
        structures, layout = part.structures, part.structures.layout
        if part.dense:
            # The window's width is relative to the operator's own scale.
            matrix = part.matrix() / operator.scale if isinstance(spectral_filter, ModeWindow) else part.matrix()
            padded = layout.pad(columns)
            if spectral_filter.inverse:
                found = _of_inverse(spectral_filter, matrix, padded, part, second_order)
            else:
                found = spectral_filter.apply(matrix, padded, layout, second_order)
            return (layout.unpad(found),)
        if isinstance(spectral_filter, ModeWindow):
            _check_window(layout.n_max, config)
            return (columns,)
        known = structures.species if repeated else None
        if not spectral_filter.inverse or not structures.n_periodic[0]:
            return (spectral_filter.solve(part.product, columns, second_order, known),)
        mean = columns.mean(0)
        neutral = spectral_filter.solve(
            lambda values: _neutral(part.product(_neutral(values))), columns - mean, second_order, known
        )
        return (mean + neutral,)

    return operator.by_part(of_part, columns)[0]


def _neutral(values: torch.Tensor) -> torch.Tensor:
    return values - values.mean(0)


def _check_window(n_atoms: int, config: PhiConfig) -> None:
    """InputError unless a window on ``num_modes`` modes is 1 on a structure that is too large for dense algebra."""
    if config.num_modes is None or config.num_modes < n_atoms:
        raise InputError(
            f"num_modes is {config.num_modes} and a structure has {n_atoms} atoms, more than dense_limit="
            f"{config.dense_limit}: the level of the window, Σf = k, takes all eigenvalues. Use low_pass or all modes "
            f"(num_modes=None), or dense_limit={n_atoms} where memory and time allow."
        )


def _of_inverse(
    spectral_filter: LowPass | ModeWindow, matrix: torch.Tensor, columns: torch.Tensor, part: Part, second_order: bool
) -> torch.Tensor:
    """f(L) applied to columns (n_structures, n_max, c), from P = L⁻¹.

    Crystals and slabs: with Π = 1 − 11ᵀ/n, L is the inverse of ΠPΠ among neutral charges and zero on the uniform
    one, f(L)a = ā + Π f(L) Πa. P itself will not do: next to the background it calls the uniform charge the
    roughest of all, f(L)1 all but vanishes, and no total charge can be projected along it.
    """
    layout, mean = part.structures.layout, torch.zeros_like(columns[:, :1])
    windowed = isinstance(spectral_filter, ModeWindow)
    if any(part.structures.n_periodic):
        periodic = part.structures.pbc.any(1)
        inside = (layout.mask & periodic[:, None]).to(columns.dtype)  # (n_structures, n_max)
        uniform = inside / inside.sum(1, keepdim=True).clamp(min=1).sqrt()  # of norm 1, or 0 where open
        mean = uniform[:, :, None] * (uniform[:, None, :] @ columns)
        columns = columns - mean
        row = uniform[:, None, :] @ matrix
        across = uniform[:, :, None] * (row - 0.5 * (row @ uniform[:, :, None]) * uniform[:, None, :])
        # The uniform mode counts as one of k: it is put far above all others, where f = 1.
        margin = 40 * spectral_filter.width if isinstance(spectral_filter, ModeWindow) else 0.0
        top = matrix.detach().abs().sum(-1).amax(-1) + margin
        matrix = matrix - across - across.mT + torch.einsum("g,gi,gj->gij", top, uniform, uniform)
    # The smooth modes are the lowest of L, so the highest of P = L⁻¹.
    return mean + spectral_filter.apply(-matrix if windowed else matrix, columns, layout, second_order)

"""What an operator is: a discrete −∇² that says what it can serve, bound to structures once a forward pass."""

import abc
from collections.abc import Callable, Sequence
from typing import ClassVar, Literal, Protocol

import torch

from phi_equivariant.division import WHOLE
from phi_equivariant.errors import InputError
from phi_equivariant.inputs.cells import describe_pbc
from phi_equivariant.operators.gaussians import own_gradient_kernel
from phi_equivariant.structures import Structures

_NUMBERS = {1: "one", 2: "two", 3: "three"}


class Settings(Protocol):
    """What operators read of ``PhiConfig``, which in turn asks them what they can serve."""

    @property
    def operator(self) -> str: ...
    @property
    def width(self) -> float | Literal["covalent"] | None: ...
    @property
    def dense_limit(self) -> int: ...
    @property
    def multipoles(self) -> int: ...
    @property
    def charge_constraint(self) -> str | None: ...
    @property
    def polarizable(self) -> bool: ...


class Operator(torch.nn.Module, abc.ABC):
    """A symmetric positive semi-definite L, or its inverse P, of the atoms of every structure.

    A new operator is a subclass in a module of its own and one entry in ``operators.kinds``.
    """

    name: ClassVar[str]
    inverse: ClassVar[bool]  # whether it is P = L⁻¹ in V/e that is applied, rather than L in e/V
    carries_charge: ClassVar[bool]  # whether charges can have a sum other than zero; only where ``inverse``
    periodicities: ClassVar[frozenset[int]]  # numbers of periodic directions that it is defined for
    dipoles: ClassVar[bool]  # whether there are potentials of atomic dipoles
    widths_of_charges: ClassVar[bool]  # whether charges have a width
    element_scale: ClassVar[float]  # κ of ``AlphaNet`` that gives charges of about 0.2 e in organic molecules
    window_width: ClassVar[float]  # τ of ``ModeWindow``, in units of the operator's ``scale``

    def __init_subclass__(cls) -> None:
        # Charges Lφ are not projected, so their sum would be neither zero nor what was asked for, and have no dipoles.
        for what in ("carries_charge", "dipoles"):
            if getattr(cls, what, False) and not getattr(cls, "inverse", True):
                raise TypeError(f"{cls.__name__}: {what}=True needs inverse=True.")
        super().__init_subclass__()

    @classmethod
    @abc.abstractmethod
    def build(cls, atomic_numbers: Sequence[int], r_max: float, config: Settings) -> "Operator":
        """The operator of a host with these elements and this cut-off in Å."""

    @abc.abstractmethod
    def at(
        self, structures: Structures, matrix: bool = False, up_to: int | None = None, edges: bool = False
    ) -> "Bound":
        """The operator at the structures of a batch, to be built once a forward pass.

        Parameters
        ----------
        structures: ``Structures``
        matrix: whether matrices are wanted, of structures up to ``dense_limit`` atoms
        up_to: atoms up to which matrices are faster in open structures, where they are not needed; in cells they are
            where products with a mesh are no faster
        edges: whether the structures of every part are to have their edges
        """

    @classmethod
    def periodicities_with(cls, config: Settings) -> frozenset[int]:
        """Numbers of periodic directions that it is defined for with these settings."""
        return cls.periodicities

    def uniform_part(self, structures: Structures) -> torch.Tensor | None:
        """What P has for every pair of atoms beside their potential, (n_structures,) in V/e; None where nothing.

        It makes P positive and acts on net charges only.
        """
        return None

    def check(self, structures: Structures) -> None:
        """InputError for structures that the operator is not defined for."""
        if not self.carries_charge and bool((structures.total_charge != 0).any()):
            raise InputError(
                f"total_charge is {structures.total_charge.tolist()}, but the charges of operator={self.name!r} sum to "
                "zero by construction; use operator='coulomb' for ions."
            )
        for index, number in enumerate(structures.n_periodic):
            if number not in self.periodicities:
                known = " or ".join(_NUMBERS[n] for n in sorted(self.periodicities - {0}))
                none = " or none" if 0 in self.periodicities else ""
                raise InputError(
                    f"structure {index} has pbc {describe_pbc(structures.pbc[index])}, but operator={self.name!r} sums "
                    f"over {known} periodic directions{none}. Use operator='graph', or, if enough vacuum is between "
                    "the images and there is no dipole across it, pbc=True."
                )


class Part(abc.ABC):
    """An operator at structures that are computed together, as a linear map on their atoms."""

    dense: bool  # whether there is a matrix
    width_squared: torch.Tensor  # (n_atoms,), σ² in Å² of operators that have ``dipoles``

    def __init__(self, structures: Structures) -> None:
        self.structures = structures

    @abc.abstractmethod
    def product(self, values: torch.Tensor) -> torch.Tensor:
        """Pq in V, or Lφ in e, differentiable to any order: (n_atoms, c) → (n_atoms, c)."""

    @abc.abstractmethod
    def matrix(self) -> torch.Tensor:
        """P or L of every structure, (n_structures, n_max, n_max), zero where there is no atom; only if ``dense``."""

    @abc.abstractmethod
    def diagonal(self) -> torch.Tensor:
        """P_ii or L_ii, (n_atoms,)."""

    def joint(self, charges: torch.Tensor, dipoles: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Potential of charges and dipoles, and its gradient; see ``Bound.joint``."""
        raise NotImplementedError(f"{type(self).__name__} has no dipoles.")

    def joint_matrix(self) -> torch.Tensor | None:
        """``joint`` as a matrix without derivatives, (n_structures, 4 n_max, 4 n_max), an atom's charge and dipole side
        by side, zero where there is no atom; None where products are no slower."""
        return None

    def nearly(self) -> "Part | None":
        """Nearly the same in single precision, with matrices and without derivatives, for solvers to precondition with;
        None where nothing of the kind is known."""
        return None

    def screened(self, diagonal: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor] | None:
        """An inverse of P + η of charges that is right at long wavelengths, from the diagonal (n_atoms,), for solvers
        to precondition with; None where none is known."""
        return None

    def agreed(self, values: torch.Tensor) -> torch.Tensor:
        """Values (n_atoms, …) that all processes have to rounding, with the same bits on each: solvers must stop
        together."""
        share = self.structures.share
        if share is WHOLE:
            return values
        rows, own = share.rows(len(values)), torch.zeros_like(values)
        own[rows] = values[rows]
        return share.leave(own)[0]

    def dipole_diagonal(self) -> torch.Tensor:
        """k_e/(6√π σ³), ∇φ of a dipole where it is, per dipole: (n_atoms,) in V/(e·Å²), without that of its images."""
        return own_gradient_kernel(2 * self.width_squared)


class Bound:
    """An operator at the structures of a batch: one linear map on all their atoms, symmetric.

    Parameters
    ----------
    structures: ``Structures``
    parts: atoms (n_part,) and ``Part`` of each group of structures; None for the atoms where there is one group
    scale: unit of the operator in e/V, or V/e if ``inverse``
    """

    def __init__(
        self,
        structures: Structures,
        parts: Sequence[tuple[torch.Tensor | None, Part]],
        scale: torch.Tensor | float = 1.0,
    ) -> None:
        self.structures, self.parts, self.scale = structures, parts, scale

    def product(self, values: torch.Tensor) -> torch.Tensor:
        """Pq in V, or Lφ in e: (n_atoms, c) → (n_atoms, c)."""
        return self.by_part(lambda part, inside: (part.product(inside),), values)[0]

    def joint(self, charges: torch.Tensor, dipoles: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Potential of charges and dipoles, and its gradient: the product of P in the larger sense, symmetric too.

        With φ and ∇φ, the energy of charges q and dipoles μ is ½ Σ_i (q_i φ_i + μ_i·∇φ_i).

        Parameters
        ----------
        charges: (n_atoms, c) in e; dipoles: (n_atoms, c, 3) in e·Å

        Returns
        -------
        potential: (n_atoms, c) in V; gradient: (n_atoms, c, 3) in V/Å
        """
        potential, gradient = self.by_part(lambda part, *moments: part.joint(*moments), charges, dipoles)
        return potential, gradient

    def diagonal(self) -> torch.Tensor:
        """P_ii or L_ii, (n_atoms,)."""
        return self.by_part(lambda part: (part.diagonal(),))[0]

    def by_part(
        self, function: Callable[..., tuple[torch.Tensor, ...]], *inputs: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """function(part, inputs of its atoms) → tensors of its atoms, in the order of all atoms."""
        if len(self.parts) == 1:
            return function(self.parts[0][1], *inputs)
        atoms = [chosen for chosen, _ in self.parts if chosen is not None]
        found = [
            function(part, *(values[chosen] for values in inputs))
            for chosen, (_, part) in zip(atoms, self.parts, strict=True)
        ]
        order = torch.cat(atoms).argsort()
        return tuple(torch.cat(values)[order] for values in zip(*found, strict=True))

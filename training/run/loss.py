"""The loss: its form and the weights of its terms in both stages."""

import dataclasses

from phi_equivariant.errors import InputError
from training.run.option import ABOVE_ZERO, ZERO_OR_MORE, RunPart, option


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Loss(RunPart):
    """What is minimised. A term has the weight ``<term>_weight``, in stage two ``swa_<term>_weight`` where that is."""

    loss: str = option(
        "weighted, ef, forces_only, virials, stress, huber, universal or l1l2energyforces: mace's losses"
    )
    energy_weight: float = option("weight of the energies, as in mace")
    forces_weight: float = option("weight of the forces, as in mace")
    stress_weight: float = option("weight of the stresses, as in mace")
    virials_weight: float = option("weight of the virials, as in mace")
    dipole_weight: float = option("weight of the dipole loss, mean over structures, 1/(e·Å)²")
    charges_weight: float = option("weight of the charge loss, mean over atoms, 1/e²")
    polarizability_weight: float = option(
        "weight of the polarisability loss, mean over structures, 1/(e·Å²/V)²: for charges or dipoles that respond"
    )
    huber_delta: float = option("delta of mace's huber and universal losses")
    swa_energy_weight: float = option("weight of the energies in stage two")
    swa_forces_weight: float = option("weight of the forces in stage two")
    swa_stress_weight: float = option("weight of the stresses in stage two")
    swa_virials_weight: float = option("weight of the virials in stage two")
    swa_dipole_weight: float = option("weight of the dipole loss in stage two, as in stage one by default")
    swa_polarizability_weight: float = option(
        "weight of the polarisability loss in stage two, as in stage one by default"
    )

    def __post_init__(self) -> None:
        self.expect(ABOVE_ZERO, "huber_delta")
        self.expect(ZERO_OR_MORE, *(name for name in self.values() if name.endswith("_weight")))
        if self.loss in ("dipole", "dipole_polar", "energy_forces_dipole"):
            raise InputError(
                f"--loss: {self.loss} belongs to mace's dipole models. Use an energy and force loss such as weighted, "
                "with --dipole_weight to train dipoles."
            )

    def weight(self, term: str, stage: int = 1) -> float:
        """Weight of a term in stage one or two."""
        one: float = getattr(self, f"{term}_weight")
        two: float = getattr(self, f"swa_{term}_weight", one)
        return one if stage == 1 else two

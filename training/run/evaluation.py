"""What an evaluation is: the options of mace_eval_configs by their names and defaults, and ours."""

import dataclasses
from typing import Any


def asked(means: str, default: Any = dataclasses.MISSING, choices: tuple[str, ...] | None = None) -> Any:
    """A field named as the option is: without a default it must be given, and one that is False is a switch."""
    return dataclasses.field(default=default, metadata={"means": means, "choices": choices})


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Predicted:
    """Which quantities beside energy, forces and those of Φ are written."""

    compute_stress: bool = asked("stress of crystals", False)
    compute_polarizability: bool = asked("polarisability of open structures, e·Å²/V (with Φ)", False)
    compute_bec: bool = asked("Born effective charges of the atoms, e (with Φ)", False)
    return_contributions: bool = asked("energies by body order (bare hosts of class MACE)", False)
    return_node_energies: bool = asked("energy of each atom", False)
    return_descriptors: bool = asked("the host's node features", False)
    descriptor_num_layers: int = asked("from the first so many layers; -1: all", -1)
    descriptor_aggregation_method: str | None = asked("in place of each atom's", None, ("mean", "per_element_mean"))
    descriptor_invariants_only: bool = asked("scalars only", True)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationOptions(Predicted):
    """What is to be evaluated, and how; ``keys`` are {option: name in the file}."""

    configs: str = asked("structures: any file that ase reads")
    model: str = asked(
        "folder of a run, its model.safetensors, a name of the zoo (phi-zoo list), or a mace .model file"
    )
    output: str = asked("extended XYZ: .xyz or .extxyz, also with .gz, .bz2 or .xz behind it")
    errors: str | None = asked("JSON file for the errors with respect to the labels in the file", None)
    info_prefix: str = asked("prefix of the names of what is written", "MACE_")
    device: str = asked("where to compute", "cpu", ("cpu", "cuda"))
    default_dtype: str = asked("precision", "float64", ("float32", "float64"))
    batch_size: int = asked("most structures in a batch", 64)
    batch_atoms: int = asked("most atoms in a batch; a larger structure comes alone", 5000)
    head: str | None = asked("head of the model, where it has several", None)
    enable_cueq: bool = asked("compute with cuequivariance's kernels, where it is installed", False)
    trust_pickle: bool = asked("read a .model file: a pickle, which can run any code", False)
    skip_bad: bool = asked("report structures that cannot be evaluated and leave them out", False)
    keys: dict[str, str] = dataclasses.field(default_factory=dict)

    @classmethod
    def options(cls) -> list[dataclasses.Field[Any]]:
        """Those that are options, the quantities last."""
        wanted = dataclasses.fields(Predicted)
        return [field for field in dataclasses.fields(cls)[len(wanted) :] if field.name != "keys"] + list(wanted)

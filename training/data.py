"""From files or a data set to batches: labels checked, validation split off, neighbour lists built."""

import dataclasses
import hashlib

import numpy as np
import torch

from phi_equivariant.errors import InputError
from training import datasets, mace_interface
from training.batches import EpochOrder, GraphList, GraphStream, StatisticsPass, collate
from training.structures import read_structures

KEY_OPTIONS = ("energy_key", "forces_key", "stress_key", "virials_key", "dipole_key", "charges_key", "total_charge_key")


@dataclasses.dataclass
class RunData:
    """The structures of a run.

    train, valid : GraphList; test : GraphStream or None; atomic_numbers : elements of the model; e0s : {Z: eV};
    lines : what was found, for the log; provenance : the same for JSON, with the indices of the split;
    digest : sha256 of training and validation structures and labels.
    """

    train: GraphList
    valid: GraphList
    test: GraphStream | None
    atomic_numbers: list
    e0s: dict
    lines: list
    provenance: dict
    digest: str

    def order(self, options):
        """The shuffled batches of every epoch."""
        return EpochOrder(len(self.train), options.batch_size, options.seed)

    def statistics_pass(self, order):
        """The training set in the order's next shuffle, for mace's statistics."""
        return StatisticsPass(self.train, order)

    def train_loader(self, order, options):
        """Shuffled batches for training."""
        return _loader(self.train, options, batch_sampler=order)

    def loader(self, split, options):
        """Batches of train, valid or test in their own order, for evaluation."""
        return _loader(getattr(self, split), options, batch_size=options.valid_batch_size)


def _loader(dataset, options, **how):
    return torch.utils.data.DataLoader(
        dataset,
        collate_fn=collate,
        num_workers=options.num_workers,
        pin_memory=options.pin_memory and options.device == "cuda",
        # Lightning and torch seed workers from here; the order of batches does not depend on it.
        generator=torch.Generator().manual_seed(options.seed),
        **how,
    )


def required_labels(options):
    """Labels that the loss needs: a frame without one of them stops the run."""
    needed = []
    if options.energy_weight and options.loss != "forces_only":
        needed.append("energy")
    if options.forces_weight:
        needed.append("forces")
    needed += [name for name in ("charges", "dipole") if getattr(options, f"{name}_weight")]
    needed += [name for name in ("stress", "virials") if options.loss == name]
    if options.E0s == "average" and "energy" not in needed:
        needed.append("energy")
    return needed


def random_split(size, fraction, seed):
    """Indices of training and validation, the same as mace's for that seed.

    Raises
    ------
    InputError
        If one structure is not enough for two sets.
    """
    if size < 2:
        raise InputError(
            f"--train_file holds {size} structure; a validation set cannot be split off. Give --valid_file."
        )
    order = list(range(size))
    np.random.default_rng(seed).shuffle(order)
    train_size = min(size - int(fraction * size), size - 1)
    return order[:train_size], order[train_size:]


def load(options, phi):
    """Read, check and prepare everything that a run trains and tests on.

    Raises
    ------
    InputError
        For anything in the data that does not fit the options.
    """
    frames, e0s, reports, provenance = (_from_registry if options.dataset else _from_files)(options, phi)
    if phi is not None and phi.config.operator == "graph" and not options.dataset:
        _refuse_charged(frames)
    numbers = _atomic_numbers(options, frames)
    if len(frames["train"]) < options.batch_size:
        raise InputError(
            f"--batch_size: {options.batch_size} is more than the {len(frames['train'])} training structures, and "
            "batches that are not full are left out of training, as in mace: nothing would be trained. Choose a "
            "smaller batch_size."
        )

    def make_graph(atoms):
        configuration = next(mace_interface.configurations([atoms], options.config_type_weights))
        return mace_interface.graph(configuration, numbers, options.r_max)

    if e0s is None or (options.dataset and options.E0s is not None):
        configurations = mace_interface.configurations(frames["train"], options.config_type_weights)
        e0s = mace_interface.atomic_energies(options.E0s, configurations, numbers)
    missing = [number for number in numbers if number not in e0s]
    if missing:
        raise InputError(
            f"--E0s: no isolated-atom energy for atomic number {', '.join(map(str, missing))}. Give all of {numbers}."
        )
    train, valid = (GraphList(map(make_graph, frames[split])) for split in ("train", "valid"))
    return RunData(
        train=train,
        valid=valid,
        test=GraphStream(frames["test"], make_graph) if frames["test"] is not None else None,
        atomic_numbers=numbers,
        e0s={number: e0s[number] for number in numbers},
        lines=[line for report in reports for line in report.lines()],
        provenance={**provenance, "labels": [report.as_dict() for report in reports], "e0s": e0s},
        digest=_digest(train, valid),
    )


def _from_registry(options, phi):
    data = datasets.load_dataset(options.dataset, data_dir=options.data_dir, seed=options.seed)
    for name in required_labels(options):
        report = data.reports["train"]
        if report.counts.get(name, 0) < report.frames:
            raise InputError(
                f"--{name}_weight: the data set {options.dataset} has no {name}; it has {', '.join(report.counts)}. "
                "Leave the weight out."
            )
    frames = {"train": data.train, "valid": data.valid, "test": data.test}
    return frames, data.e0s, list(data.reports.values()), data.provenance


def _from_files(options, phi):
    keys = {name: getattr(options, name) for name in KEY_OPTIONS}
    needed = required_labels(options)
    common = {"keys": keys, "allow_periodic": phi is None}
    # The key of a label that weighs is checked by `required`; one that the user named must exist as well.
    train = read_structures(
        options.train_file, required=needed, split="train", keep_isolated_atoms=options.keep_isolated_atoms, **common
    )
    reports, frames, provenance = [train.report], {}, {"train_file": str(options.train_file)}
    if options.valid_file:
        valid = read_structures(options.valid_file, required=needed, split="valid", **common)
        reports.append(valid.report)
        frames |= {"train": train.frames, "valid": valid.frames}
        provenance["valid_file"] = str(options.valid_file)
    else:
        chosen, held_out = random_split(len(train.frames), options.valid_fraction, options.seed)
        frames |= {"train": [train.frames[i] for i in chosen], "valid": [train.frames[i] for i in held_out]}
        provenance["split"] = {"seed": options.seed, "train_indices": chosen, "valid_indices": held_out}
    frames["test"] = None
    if options.test_file:
        known = _atomic_numbers(options, frames)
        test = read_structures(options.test_file, required=needed, split="test", elements=known, **common)
        reports.append(test.report)
        frames["test"] = test.frames
        provenance["test_file"] = str(options.test_file)
    return frames, train.e0s or None, reports, provenance


def _refuse_charged(frames):
    """The graph operator's charges sum to zero: a charged structure has no place there."""
    for split, structures in frames.items():
        for index, atoms in enumerate(structures or ()):
            if atoms.info.get("total_charge", 0.0) != 0.0:
                raise InputError(
                    f"total_charge: structure {index} of the {split} set has {atoms.info['total_charge']:g} e, and "
                    "the charges of operator: graph sum to zero by construction. Use operator: coulomb, or neutral "
                    "structures."
                )


def _atomic_numbers(options, frames):
    found = {int(number) for split in ("train", "valid") for atoms in frames[split] for number in set(atoms.numbers)}
    if options.atomic_numbers is None:
        return sorted(found)
    try:
        given = sorted(int(number) for number in options.atomic_numbers.strip("[]() ").split(","))
    except ValueError:
        raise InputError(
            f"--atomic_numbers: expected a list as in '[1, 6, 8]', got {options.atomic_numbers!r}."
        ) from None
    if unknown := found - set(given):
        raise InputError(f"--atomic_numbers: the data hold elements {sorted(unknown)} that are not among {given}.")
    return given


def _digest(*sets):
    sha = hashlib.sha256()
    for graphs in sets:
        for graph in graphs.graphs:
            for key in ("positions", "energy", "forces", "charges", "dipole", "total_charge"):
                sha.update(graph[key].numpy().tobytes())
    return sha.hexdigest()

"""From files or a data set to batches: labels checked, validation split off, neighbour lists built."""

import dataclasses
import hashlib
from typing import Any

import torch
from ase.data import chemical_symbols
from torch.utils.data import DataLoader

from phi_equivariant.errors import InputError
from phi_equivariant.inputs.graphs import collate
from phi_equivariant.inputs.state import StateReader
from phi_equivariant.operators.kinds import operator_class
from training import distribution
from training.data import electronegativity
from training.data.geometry import ALL_PERIODICITIES
from training.data.isolated import isolated_energies
from training.data.labelled_graphs import GraphMaker, Graphs, graph_set
from training.data.needs import Needs
from training.data.order import DealtBatches, EpochOrder, StatisticsPass, WholeSet
from training.data.parts import HeadFrames, state_reader
from training.data.placing import Accepted
from training.data.replay import repeat_new_structures
from training.data.sources import HeadReader, from_registry
from training.data.spool import GraphStream
from training.run import Data, Head, Machine, Run


@dataclasses.dataclass
class RunData:
    """The structures of a run.

    heads : names of the heads, in the model's order; settings : what was given for each (:class:`heads.Head`);
    train : the training structures of all heads, joined in that order; train_sets, valid : {head: structures};
    test : {name of the test set: structures}, empty without test files; test_heads : {name of the test set: head};
    skipped : heads that tables leave out; atomic_numbers : elements of the model; e0s : {head: {Z: eV}};
    lines : what was found, for the log; provenance : the same for JSON, with the indices of the split;
    digest : sha256 of training and validation structures and labels; foundation : the trained model to start from;
    state : how total charges and the like are read, and in which range the training structures have them;
    electronegativity : χ̄ of Φ in V, None where charges sum to zero or nothing tells;
    part, machine : how structures are dealt out; whole : whether a step takes all of them (L-BFGS).
    """

    heads: list[str]
    settings: list[Head]
    train: Graphs
    train_sets: dict[str, Graphs]
    valid: dict[str, Graphs]
    test: dict[str, Graphs]
    test_heads: dict[str, str]
    skipped: set[str]
    atomic_numbers: list[int]
    e0s: dict[str, dict[int, float]]
    lines: list[str]
    provenance: dict[str, Any]
    digest: str
    foundation: Any
    state: StateReader
    electronegativity: float | None
    part: Data
    machine: Machine
    whole: bool

    def order(self) -> EpochOrder:
        """The shuffled batches of every epoch; in a distributed run, this process's part of them."""
        share = {"rank": distribution.rank(), "processes": distribution.size()}
        return EpochOrder(len(self.train), self.part.batch_size, self.machine.seed, drop_last=not self.whole, **share)

    def statistics_pass(self, order: EpochOrder) -> StatisticsPass:
        """The training set in the order's next shuffle, for mace's statistics."""
        return StatisticsPass(self.train, order)

    def train_loader(self, order: EpochOrder) -> WholeSet | DataLoader[Any]:
        """Shuffled batches for training; for L-BFGS one item, which is the whole set in batches."""
        if self.whole:
            return WholeSet(self.train, self.part.batch_size)
        return self._loader(self.train, order)

    def sets(self, split: str) -> dict[str, Graphs]:
        """{name: structures} of ``train`` or ``valid`` by head, or of ``test`` by test set."""
        return self.train_sets if split == "train" else getattr(self, split)

    def size(self, split: str) -> int:
        """Number of structures of a split."""
        return sum(map(len, self.sets(split).values()))

    def evaluated(self) -> dict[str, tuple[str, str]]:
        """{row of the error table: (split, name of the set)}; the last one is the set that plots and comparisons show.

        A split with a single set has that split's name, others are ``<split>_<name>``.
        """
        found = [
            (split, name)
            for split in ("train", "valid", "test")
            for name in self.sets(split)
            if self.test_heads.get(name, name) not in self.skipped
        ]
        alone = {split for split in ("train", "valid", "test") if len(self.sets(split)) == 1}
        return {split if split in alone else f"{split}_{name}": (split, name) for split, name in found}

    def loader(self, split: str) -> dict[str, DataLoader[Any]]:
        """{name: batches in their own order} of a split, for evaluation; in a distributed run, this process's share."""
        share = {"rank": distribution.rank(), "processes": distribution.size()}
        return {
            name: self._loader(dataset, DealtBatches(len(dataset), self.part.valid_batch_size, **share))
            for name, dataset in self.sets(split).items()
        }

    def _loader(self, dataset: Any, batches: EpochOrder | DealtBatches) -> DataLoader[Any]:
        """torch's loader; its processes are kept from epoch to epoch."""
        return DataLoader(
            dataset,
            collate_fn=collate,
            num_workers=self.machine.num_workers,
            persistent_workers=self.machine.num_workers > 0,
            pin_memory=self.machine.pin_memory and self.machine.device == "cuda",
            # Lightning and torch seed workers from here; the order of batches does not depend on it.
            generator=torch.Generator().manual_seed(self.machine.seed),
            batch_sampler=batches,  # type: ignore[arg-type]  # a range serves as a list
        )


def load(run: Run, needs: Needs, foundation: Any = None) -> RunData:
    """Read, check and prepare everything that a run trains and tests on.

    ``needs``: what the loss asks of the data (:class:`training.data.needs.Needs`); ``foundation``: the trained model to
    start from (``training.fit.foundation.Foundation``), None without one.

    InputError for anything in the data that does not fit the options.
    """
    data, phi, machine = run.data, run.phi, run.machine
    # What is found while reading is noted with the head: in a copy, because a run does not change.
    heads = [dataclasses.replace(head, notes=list(head.notes)) for head in run.heads]
    accepted = Accepted(
        operator="" if phi is None else phi.config.operator,
        periodicities=ALL_PERIODICITIES if phi is None else operator_class(phi.config).periodicities_with(phi.config),
        charged=phi is None or operator_class(phi.config).carries_charge or bool(data.dataset),
        fields=phi is not None and not run.task.compare,
        ions=phi is not None,
        embeddings=run.host.embeddings,
    )
    reader = HeadReader(data, machine.seed, [head.name for head in heads], needs, accepted, run.replay)
    if data.dataset:
        found = [from_registry(heads[0], data, machine.seed, needs)]
    else:
        found = [reader.train_and_valid(head) for head in heads]
        if run.replay.active:
            repeat_new_structures(found, run.replay.real_pt_data_ratio_threshold)
    needs.check(found)
    if run.task.compare and any(frames.total_charges() not in (None, [], [0]) for frames in found):
        raise InputError(
            "--compare: the data hold ions, and charges of operator: graph, which one of its rows has, sum to zero. "
            "Train with --phi and with --no_phi instead."
        )
    if not run.optimiser.lbfgs:
        _check_batch_size(data.batch_size, sum(frames.size() for frames in found))
    elements = {frames.head.name: frames.elements() for frames in found}
    numbers = sorted(set().union(*elements.values()))
    if foundation is not None:
        numbers = foundation.choose_elements(numbers, run.host)
    known = {} if foundation is None else foundation.energies
    if phi is not None and operator_class(phi.config).carries_charge:
        electronegativity.find(found, phi, foundation)
    e0s = {}
    for frames in found:
        own = isolated_energies(
            frames, elements[frames.head.name], numbers, foundation, machine.device, run.host.embedding_specs
        )
        if kept := [chemical_symbols[number] for number in numbers if number not in own and number in known]:
            frames.head.notes.append(
                f"E0s: those of {', '.join(kept)}, of which the data tell nothing, are still the trained model's: "
                "right at its level of theory alone. --E0s with all elements gives others"
            )
        e0s[frames.head.name] = {number: own.get(number, known.get(number, 0.0)) for number in numbers}
        if not data.dataset:
            reader.tests(frames, numbers)
    read = {*accepted.embedded, *(["total_charge"] if phi is not None else [])}
    return _run_data(found, numbers, e0s, run, foundation, state_reader(found, read))


def _check_batch_size(batch_size: int, structures: int) -> None:
    processes = distribution.size()
    if structures < batch_size * processes:
        each = f" in each of {processes} processes" if processes > 1 else ""
        raise InputError(
            f"--batch_size: {batch_size}{each} is more than the {structures} training structures, and batches that "
            "are not full are left out of training, as in mace: nothing would be trained. Choose a smaller batch_size."
        )


def _run_data(
    found: list[HeadFrames],
    numbers: list[int],
    e0s: dict[str, dict[int, float]],
    run: Run,
    foundation: Any,
    state: StateReader,
) -> RunData:
    """The run's data from those of its heads: graphs are built here, of data in memory now, of others when read."""
    names = [frames.head.name for frames in found]
    several = len(names) > 1
    train, valid, test = dict[str, Any](), dict[str, Graphs](), dict[str, Graphs]()
    test_heads: dict[str, str] = {}
    lines, sha = list[str](), hashlib.sha256()
    for frames in found:
        name = frames.head.name
        make = GraphMaker(numbers, run.host.r_max, names, name, frames.head.config_type_weights, run.host.embeddings)
        train[name] = graph_set(frames.train, make, sha)
        valid[name] = graph_set(frames.valid, make, sha)
        for set_name, structures in frames.tests.items():
            test[set_name], test_heads[set_name] = GraphStream(structures, make), name
        lines += [f"head {name}:"] if several else []
        lines += [line for report in frames.reports for line in report.lines()] + frames.head.notes
    labels = {frames.head.name: [report.as_dict() for report in frames.reports] for frames in found}
    about = [
        {
            **frames.provenance,
            "labels": labels[frames.head.name],
            "total_charges": frames.total_charges(),
            "e0s": e0s[frames.head.name],
            "electronegativity": frames.electronegativity,
        }
        for frames in found
    ]
    return RunData(
        heads=names,
        settings=[frames.head for frames in found],
        train=torch.utils.data.ConcatDataset(train.values()) if several else train[names[0]],
        train_sets=train,
        valid=valid,
        test=test,
        test_heads=test_heads,
        skipped=run.output.skipped(names),
        atomic_numbers=numbers,
        e0s=e0s,
        lines=lines,
        provenance={"heads": dict(zip(names, about, strict=True))} if several else about[0],
        digest=sha.hexdigest(),
        foundation=foundation,
        state=state,
        electronegativity=found[0].electronegativity,
        part=run.data,
        machine=run.machine,
        whole=run.optimiser.lbfgs,
    )

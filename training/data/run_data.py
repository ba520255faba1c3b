"""From files or a data set to batches: labels checked, validation split off, neighbour lists built."""

import dataclasses
import functools
import hashlib

import torch

from phi_equivariant.errors import InputError
from phi_equivariant.operators.registry import operator_class
from training import distribution, mace_interface
from training.data.batches import GraphList, GraphStream, collate
from training.data.e0s import isolated_energies
from training.data.heads import read_heads
from training.data.order import DealtBatches, EpochOrder, StatisticsPass, WholeSet
from training.data.sources import HeadReader, from_registry, on_disk
from training.data.spool import SpooledGraphs

HEAD = mace_interface.HEAD


@dataclasses.dataclass
class RunData:
    """The structures of a run.

    heads : names of the heads, in the model's order; settings : what was given for each (:class:`heads.Head`);
    train : the training structures of all heads, joined in that order; train_sets, valid : {head: structures};
    test : {name of the test set: structures}, empty without test files; test_heads : {name of the test set: head};
    skipped : heads that tables leave out; atomic_numbers : elements of the model; e0s : {head: {Z: eV}};
    lines : what was found, for the log; provenance : the same for JSON, with the indices of the split;
    digest : sha256 of training and validation structures and labels; foundation : the trained model to start from.
    """

    heads: list
    settings: list
    train: torch.utils.data.Dataset
    train_sets: dict
    valid: dict
    test: dict
    test_heads: dict
    skipped: set
    atomic_numbers: list
    e0s: dict
    lines: list
    provenance: dict
    digest: str
    foundation: object = None

    def order(self, options):
        """The shuffled batches of every epoch; in a distributed run, this process's part of them."""
        part = {"rank": distribution.rank(), "processes": distribution.size()}
        return EpochOrder(len(self.train), options.batch_size, options.seed, drop_last=not options.lbfgs, **part)

    def statistics_pass(self, order):
        """The training set in the order's next shuffle, for mace's statistics."""
        return StatisticsPass(self.train, order)

    def train_loader(self, order, options):
        """Shuffled batches for training; for L-BFGS one item, which is the whole set in batches."""
        if options.lbfgs:
            return WholeSet(self.train, options.batch_size)
        return _loader(self.train, options, batch_sampler=order)

    def sets(self, split):
        """{name: structures} of ``train`` or ``valid`` by head, or of ``test`` by test set."""
        return self.train_sets if split == "train" else getattr(self, split)

    def size(self, split):
        """Number of structures of a split."""
        return sum(map(len, self.sets(split).values()))

    def evaluated(self):
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

    def loader(self, split, options):
        """{name: batches in their own order} of a split, for evaluation; in a distributed run, this process's share."""
        part = {"rank": distribution.rank(), "processes": distribution.size()}
        return {
            name: _loader(dataset, options, batch_sampler=DealtBatches(len(dataset), options.valid_batch_size, **part))
            for name, dataset in self.sets(split).items()
        }


def _loader(dataset, options, **how):
    """torch's loader; its processes are kept from epoch to epoch."""
    return torch.utils.data.DataLoader(
        dataset,
        collate_fn=collate,
        num_workers=options.num_workers,
        persistent_workers=options.num_workers > 0,
        pin_memory=options.pin_memory and options.device == "cuda",
        # Lightning and torch seed workers from here; the order of batches does not depend on it.
        generator=torch.Generator().manual_seed(options.seed),
        **how,
    )


def required_labels(options, heads):
    """Labels that the loss needs: a frame without one of them stops the run."""
    names = ("energy", "forces", "charges", "dipole")
    weights = {name: getattr(options, f"{name}_weight") for name in names}
    if options.swa:
        weights = {name: weight or getattr(options, f"swa_{name}_weight", 0.0) for name, weight in weights.items()}
    if options.loss == "forces_only":
        weights["energy"] = 0.0
    needed = [name for name, weight in weights.items() if weight]
    needed += [name for name in ("stress", "virials") if options.loss == name]
    if any(head.E0s in ("average", "estimated") for head in heads) and "energy" not in needed:
        needed.append("energy")
    return needed


def load(options, phi, foundation=None):
    """Read, check and prepare everything that a run trains and tests on.

    ``foundation``: the trained model to start from (``training.fit.foundation.Foundation``), None without one.

    Raises
    ------
    InputError
        For anything in the data that does not fit the options.
    """
    heads = read_heads(options)
    needed = required_labels(options, heads)
    allow_charged = phi is None or operator_class(phi.config).carries_charge or bool(options.dataset)
    allow_slabs = phi is None or operator_class(phi.config).periodicities >= {1, 2}
    reader = HeadReader(options, heads, needed, allow_slabs, allow_charged)
    if options.dataset:
        found = [from_registry(heads[0], options, needed)]
    else:
        found = [reader.train_and_valid(head) for head in heads]
    _check_batch_size(options, sum(frames.size() for frames in found))
    elements = {frames.head.name: frames.elements() for frames in found}
    numbers = sorted(set().union(*elements.values()))
    if foundation is not None:
        numbers = foundation.choose_elements(numbers, options)
    known = {} if foundation is None else foundation.energies
    e0s = {}
    for frames in found:
        own = isolated_energies(frames, elements[frames.head.name], numbers, foundation, options)
        e0s[frames.head.name] = {number: own.get(number, known.get(number, 0.0)) for number in numbers}
        if not options.dataset:
            reader.tests(frames, numbers)
    return _run_data(found, numbers, e0s, options, foundation)


def _check_batch_size(options, size):
    processes = distribution.size()
    if size < options.batch_size * processes and not options.lbfgs:
        each = f" in each of {processes} processes" if processes > 1 else ""
        raise InputError(
            f"--batch_size: {options.batch_size}{each} is more than the {size} training structures, and batches that "
            "are not full are left out of training, as in mace: nothing would be trained. Choose a smaller batch_size."
        )


def _run_data(found, numbers, e0s, options, foundation):
    """The run's data from those of its heads: graphs are built here, of data in memory now, of others when read."""
    names = [frames.head.name for frames in found]
    several = len(names) > 1
    train, valid, test, test_heads, lines, sha = {}, {}, {}, {}, [], hashlib.sha256()
    for frames in found:
        name = frames.head.name
        make = functools.partial(make_graph, head=frames.head, heads=names, numbers=numbers, options=options)
        train[name] = _graphs(frames.train, make, sha)
        valid[name] = _graphs(frames.valid, make, sha)
        for set_name, structures in frames.tests.items():
            test[set_name], test_heads[set_name] = GraphStream(structures, make), name
        lines += [f"head {name}:"] if several else []
        lines += [line for report in frames.reports for line in report.lines()] + frames.head.notes
    labels = {frames.head.name: [report.as_dict() for report in frames.reports] for frames in found}
    about = [
        {**frames.provenance, "labels": labels[frames.head.name], "e0s": e0s[frames.head.name]} for frames in found
    ]
    return RunData(
        heads=names,
        settings=[frames.head for frames in found],
        train=torch.utils.data.ConcatDataset(train.values()) if several else train[names[0]],
        train_sets=train,
        valid=valid,
        test=test,
        test_heads=test_heads,
        skipped=_skipped_heads(options, names),
        atomic_numbers=numbers,
        e0s=e0s,
        lines=lines,
        provenance={"heads": dict(zip(names, about, strict=True))} if several else about[0],
        digest=sha.hexdigest(),
        foundation=foundation,
    )


def make_graph(atoms, head, heads, numbers, options):
    """One structure with its neighbour list, labels and weights, as mace's models and losses read it."""
    embeddings = options.embedding_specs or {}
    (configuration,) = mace_interface.configurations([atoms], head.config_type_weights, head.name, embeddings)
    return mace_interface.graph(configuration, numbers, options.r_max, heads, kept=tuple(embeddings))


def _graphs(parts, make, sha):
    """The data set of a head's parts, each with graphs in memory or on disk; ``sha`` learns what is in it."""
    sets = []
    for part in parts:
        if on_disk(part):
            sets.append(SpooledGraphs(part, make))
            inner = getattr(part, "dataset", part)
            sha.update(f"{inner.fingerprint()}{list(getattr(part, 'indices', ()))}".encode())
        else:
            sets.append(GraphList(map(make, part)))
            _digest(sets[-1], sha)
    return sets[0] if len(sets) == 1 else torch.utils.data.ConcatDataset(sets)


def _digest(graphs, sha):
    """What the structures are, whatever the cut-off: mace makes up a cell for an open one, as large as that needs."""
    for graph in graphs.graphs:
        made = ("edge_index", "shifts", "unit_shifts", *(() if graph["pbc"].any() else ("cell",)))
        for key, value in sorted(graph.items()):
            if isinstance(value, torch.Tensor) and key not in made:
                sha.update(value.numpy().tobytes())


def _skipped_heads(options, names):
    """Heads that the tables leave out."""
    skipped = {name.strip() for name in (options.skip_evaluate_heads or "").split(",")} - {"", "pt_head"}
    if unknown := sorted(skipped - set(names)):
        raise InputError(f"--skip_evaluate_heads: no head is called {unknown[0]!r}; they are {', '.join(names)}.")
    if skipped == set(names):
        raise InputError("--skip_evaluate_heads: no head would be evaluated. Leave one in.")
    return skipped

"""What the loss asks of the data: labels that weigh must be there, and weights that do not act are named."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from ase import Atoms

from phi_equivariant.errors import InputError
from training.data.parts import HeadFrames, of_head
from training.data.sequences import on_disk
from training.quantities import TARGETS, Label
from training.run import Head
from training.run.replay import PT_HEAD

SAMPLE = 50  # structures of a part on disk that are looked at where not all need be


@dataclass(frozen=True)
class Need:
    """A label that weighs in the loss.

    label : the label
    options : names of the options that give it its weight
    asked : whether the user has chosen its weight, its key or a loss of its name; else they are mace's defaults
    """

    label: Label
    options: tuple[str, ...]
    asked: bool


@dataclass(frozen=True)
class Needs:
    """What a loss asks of the data.

    loss : mace's name of it
    labels : labels that weigh
    ignored : entries of ``atoms.info`` that this loss of mace's does not multiply by
    optional : names of labels that weigh because replay has changed the loss: heads may have none of them
    """

    loss: str
    labels: tuple[Need, ...]
    ignored: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()

    def names(self) -> tuple[str, ...]:
        """Names of the labels that weigh."""
        return tuple(need.label.name for need in self.labels)

    def check(self, heads: Sequence[HeadFrames]) -> None:
        """Whether each label that weighs is in the training and validation sets; notes of the heads say where not.

        InputError if no training structure of a head has a label that could be there with a weight, or none of all
        heads has one, or if a validation set has no label that weighs.
        """
        lacks = [_lacking(_structures(head.train, whole=True), self.labels, _weights(head)) for head in heads]
        for need in self.labels:
            name = need.label.name
            reasons = [lack.get(name) for lack in lacks]
            asked = need.asked or any(head.head.keys[name] != need.label.default_key for head in heads)
            may_lack = name in self.optional
            if all(reasons) and not may_lack and (asked or set(reasons) != {"impossible"}):
                raise InputError(_refusal(need, heads[0], str(reasons[0])))
            for head, reason in zip(heads, reasons, strict=True):
                replayed = name == "stress" and head.head.name == PT_HEAD  # other keys, or a model without stress
                if reason == "absent" and not (may_lack or replayed):
                    raise InputError(_refusal(need, head, reason))
                if reason is not None:
                    head.head.notes.append(f"{name}: not trained{of_head(head.head)}: {_because(need.label, reason)}")
        for head, lack in zip(heads, lacks, strict=True):
            self._check_validation(head, set(self.names()) - set(lack))
            self._name_ignored_weights(head)

    def _check_validation(self, head: HeadFrames, trained: set[str]) -> None:
        if not trained:
            raise InputError(
                f"--heads: the training structures{of_head(head.head)} have none of {', '.join(self.names())} with a "
                "weight: nothing would be trained. Correct config_weight and the like, or leave that head out."
            )
        lack = _lacking(_structures(head.valid, whole=False), self.labels, _weights(head))
        absent = [name for name in self.names() if name in lack and name in trained]
        if len(absent) == len(trained):
            raise InputError(
                f"--valid_file: no validation structure{of_head(head.head)} has {' or '.join(absent)} with a weight: "
                "there is nothing to validate. Give a valid_file with labels, or another valid_fraction or seed."
            )
        for name in absent:
            head.head.notes.append(f"{name}: no validation structure{of_head(head.head)} has it: not in that loss")

    def _name_ignored_weights(self, head: HeadFrames) -> None:
        if not self.ignored:
            return
        found = {
            key
            for atoms in _structures(head.train, whole=False)
            for key in self.ignored
            if np.any(_acting(atoms.info.get(key, 1.0)))
        }
        if "config_weight" in self.ignored and any(map(_acting, head.head.config_type_weights.values())):
            found.add("config_type_weights")
        for key in sorted(found):
            head.head.notes.append(
                f"{key}: --loss {self.loss} does not multiply by it{of_head(head.head)}, as in mace: only 0 acts"
            )


def check_test(parts: Sequence[Sequence[Atoms]], head: Head, needs: Needs, files: str, keys: str) -> None:
    """Whether a test set has labels; notes of the head name those that weigh and that it lacks.

    InputError if there is nothing that errors could be computed of.
    """
    every = tuple(Need(label, (), False) for label in TARGETS.values())
    lack = _lacking(_structures(parts, whole=False), every, {})
    if len(lack) == len(every):
        raise InputError(
            f"--test_file: no structure of {files}{of_head(head)} has a label to compare with. {keys} Set "
            "energy_key and so on to the right ones."
        )
    for need in needs.labels:
        if need.label.name in lack:
            head.notes.append(f"{need.label.name}: no structure of {files} has it: it is not tested there")


def _acting(weight: Any) -> Any:
    """Whether a weight, one or by component, would change a loss that multiplies by it."""
    return (np.asarray(weight) != 0) & (np.asarray(weight) != 1)


def _weights(head: HeadFrames) -> Mapping[str, float]:
    weights: Mapping[str, float] = head.head.config_type_weights
    return weights


def _structures(parts: Sequence[Sequence[Atoms]], whole: bool) -> Iterator[Atoms]:
    """Those in memory and a sample of those on disk first; then all of them where ``whole``."""
    for part in parts:
        yield from (part[index] for index in sample(len(part))) if on_disk(part) else part
    if whole:
        for part in filter(on_disk, parts):
            yield from (part[index] for index in range(len(part)))


def sample(size: int) -> list[int]:
    """Indices of structures to look at, spread evenly."""
    indices: list[int] = np.unique(np.linspace(0, size - 1, min(SAMPLE, size)).astype(int)).tolist()
    return indices


#: Why a label may act in no structure; of several reasons the last one is told.
_REASONS = ("impossible", "unweighted", "absent", "undefined")


def _lacking(structures: Iterable[Atoms], needs: Iterable[Need], weights: Mapping[str, float]) -> dict[str, str]:
    """{label: why it acts in none of the structures}; reads no further than it must.

    ``absent``: structures could have it, and none has; ``undefined``: those that have it are not periodic as it needs;
    ``impossible``: none has it, and none is periodic so; ``unweighted``: the weights of it are 0.
    """
    labels = {need.label.name: need.label for need in needs}
    found = dict.fromkeys(labels, "impossible")
    for atoms in structures:
        for name, told in list(found.items()):
            label = labels[name]
            if label.acts(atoms, weights):
                del found[name]
            elif not label.defined(atoms):
                found[name] = "undefined" if label.within(atoms) else told
            else:
                reason = "absent" if label.weight(atoms, weights) else "unweighted"
                found[name] = max(told, reason, key=_REASONS.index)
        if not found:
            break
    return found


def _because(label: Label, reason: str) -> str:
    """A reason of :func:`_lacking` in words."""
    return {
        "absent": "no training structure has it",
        "undefined": f"{label.where_defined()}, and the training structures that have it have others",
        "impossible": f"no training structure has it, and {label.where_defined()}, which none has",
        "unweighted": f"config_weight, config_{label.name}_weight and config_type_weights leave it none in training",
    }[reason]


def _refusal(need: Need, head: HeadFrames, reason: str) -> str:
    """The message for a label that is not trained: what weighs, what is there, what to do."""
    name, keys = need.label.name, head.head.keys
    given = " and ".join(f"--{option}" for option in need.options)
    text = f"{given}: {name} weighs in the loss, and none of the {head.size()} training structures{of_head(head.head)}"
    if reason in ("absent", "impossible"):
        text += f" has {name} under the key {keys[name]!r}"
        split_off = () if head.head.valid_files else _structures(head.valid, whole=False)
        if any(need.label.acts(atoms, _weights(head)) for atoms in split_off):
            return f"{text}: all that have it are in the validation set. Give a valid_file, or another --seed."
        text += f". {head.first_keys} Set --{name}_key to the right one, or {given} to 0"
    elif reason == "undefined":
        text += f" has one that counts: {_because(need.label, reason)}. Set {given} to 0"
    else:
        text += f" has one of a weight: {_because(need.label, reason)}. Correct them, or set {given} to 0"
    return f"{text}{'' if reason != 'impossible' else f' ({need.label.where_defined()}, which none of them has)'}."

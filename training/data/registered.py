"""A data set of the registry as the structures of a run."""

from dataclasses import replace

from phi_equivariant.errors import InputError
from phi_equivariant.inputs.state import StateCount
from training.data import named_files
from training.data.needs import Needs
from training.data.parts import HeadFrames
from training.run import Data, Head


def from_registry(head: Head, data: Data, seed: int, needs: Needs) -> HeadFrames:
    """A data set of the registry as the only head's."""
    assert data.dataset is not None
    found = named_files.load_dataset(data.dataset, data_dir=data.data_dir, cache=data.downloads_dir, seed=seed)
    for need in needs.labels:
        report = found.reports["train"]
        if report.counts.get(need.label.name, 0) < report.frames:
            raise InputError(
                f"--{need.options[0]}: the data set {data.dataset} has no {need.label.name}; it has "
                f"{', '.join(report.counts)}. Leave the weight out."
            )
    own = None if head.E0s is not None else found.e0s
    reports = [replace(report, trained=needs.names()) for report in found.reports.values()]
    neutral = StateCount()
    neutral.add({"total_charge": (0.0, "total_charge")})
    tests = {head.name: found.test}
    return HeadFrames(head, [found.train], [found.valid], tests, own, reports, found.provenance, states=[neutral])

"""What the data set holds: frames by file and class, sizes, ranges of the labels, what was left out."""

import json
from collections import Counter
from io import StringIO
from pathlib import Path
from typing import Any

import ase.io
import numpy as np

from training.shipped.organic_gfn2.plan import Unit


def of(texts: dict[str, list[str]], units: list[Unit], work: Path) -> dict[str, Any]:
    """The summary of the files' frames (extended XYZ) and of the units in a working folder, for JSON."""
    files = {name: _file(frames) for name, frames in texts.items() if frames}
    left_out: Counter[str] = Counter()
    seconds, without = 0.0, []
    for unit in units:
        path = work / "units" / f"{unit.name}.xyz"
        about = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        left_out.update(about["left_out"])
        seconds += about["seconds"]
        if not path.stat().st_size:
            without.append(unit.name)
    written = sum(about["frames"] for about in files.values())
    atoms = sum(about["frames"] * about["atoms"]["mean"] for about in files.values())
    return {
        "frames": written,
        "mean_atoms": round(atoms / max(written, 1), 3),
        "files": files,
        "left_out": dict(left_out.most_common()),
        "units_without_frames": without,
        "seconds": round(seconds, 1),
    }


def _file(texts: list[str]) -> dict[str, Any]:
    frames = ase.io.read(StringIO("".join(texts)), index=":", format="extxyz")
    forces = [np.linalg.norm(frame.arrays["REF_forces"], axis=1) for frame in frames]
    labels: dict[str, Any] = {
        "atoms": [len(frame) for frame in frames],
        "total_charge": [frame.info["total_charge"] for frame in frames],
        "force": np.concatenate(forces),
        "charge": np.concatenate([frame.arrays["REF_charges"] for frame in frames]),
        "dipole": [np.linalg.norm(frame.get_dipole_moment()) for frame in frames],
        "distance": [frame.info["distance"] for frame in frames if "distance" in frame.info],
        "stretch": [frame.info["stretch"] for frame in frames if "stretch" in frame.info],
        "temperature": [frame.info["temperature"] for frame in frames if "temperature" in frame.info],
    }
    types = Counter(frame.info["config_type"] for frame in frames)
    ranges = {name: _range(np.asarray(values, dtype=float)) for name, values in labels.items() if len(values)}
    names = {frame.info["molecule"] for frame in frames}
    return {"frames": len(frames), "molecules": len(names), "classes": dict(types)} | ranges


def _range(values: np.ndarray) -> dict[str, float]:
    return {name: round(float(getattr(values, name)()), 4) for name in ("min", "mean", "max")}


def table(about: dict[str, Any]) -> str:
    """The summary as text."""
    lines = [f"{about['frames']} frames, {about['mean_atoms']:.2f} atoms on average, {about['seconds']:.0f} s of work"]
    for name, file in about["files"].items():
        lines.append(f"{name}: {file['frames']} frames of {file['molecules']} molecules or sets of them")
        lines += [f"  {kind:<24} {count:>6}" for kind, count in sorted(file["classes"].items())]
        lines += [f"  {key:<24} {value['min']:g} … {value['max']:g}, mean {value['mean']:g}"
                  for key, value in file.items() if isinstance(value, dict) and "mean" in value]  # fmt: skip
    lines += [f"left out: {reason:<48} {count:>6}" for reason, count in about["left_out"].items()]
    lines.append(f"units without frames: {', '.join(about['units_without_frames']) or 'none'}")
    return "\n".join(lines)

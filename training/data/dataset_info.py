"""What is known of a data set that has a name before it is read."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class XyzFiles:
    """The files of a data set that is published as extended XYZ.

    train : training structures; tests : test sets, of which the first must be there; isolated : single atoms with their
    energies, or None: those of the training file; keys : {option of a label's key: its name in the files}; valid :
    structures for validation, or None: a share valid_fraction of the training structures.
    """

    train: str
    tests: tuple[str, ...]
    isolated: str | None
    keys: dict[str, str]
    valid: str | None = None
    valid_fraction: float = 0.1


@dataclass(frozen=True)
class DatasetInfo:
    """What is known of a data set before it is read.

    name : name in the registry
    description : one line
    formula : chemical formula of its one molecule; empty where there are several
    level : level of theory of the labels
    options : preset, mace option -> value
    frames : number of frames in the published file; None for any
    file : published file name; None if the data set comes in split files
    train_size : published number of training and validation frames together; None if the split is fixed
    form : of the files, which decides who reads them: shipped, md22 or one of ``named_files.READERS``
    source : where it is published, for messages, of those that are read from a folder
    licence, citation : under which, and by whom
    part : number of the published split (rmd17), number of validation frames (oe62)
    xyz : the files of the form xyz
    """

    name: str
    description: str
    formula: str
    level: str
    options: dict[str, Any]
    frames: int | None = None
    file: str | None = None
    train_size: int | None = None
    form: str = "md22"
    source: str = ""
    licence: str = ""
    citation: str = ""
    part: int = 0
    xyz: XyzFiles | None = None

"""Files of structures: comment lines that ase misreads are refused, all else is read as ase reads it."""

import gzip
import itertools
from pathlib import Path

import ase.db
import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io.extxyz import key_val_str_to_dict

from phi_equivariant.errors import InputError
from phi_equivariant.inputs.frames import first_structure, read_frames
from phi_equivariant.inputs.headers import check_header

DATA = Path(__file__).parents[4] / "shared" / "data"
COLUMNS = "Properties=species:S:1:pos:R:3"
CELL = "3 0 0 0 3 0 0 0 3"
MISREAD = {
    'config_type="" total_charge=1': "config_type has no value",
    "config_type= total_charge=1": "config_type has no value",
    'config_type="" bulk': "config_type has no value",
    f'lattice="{CELL}"': "'lattice', which ase does not read",
    f'LATTICE="{CELL}"': "'LATTICE'",
    f'cell="{CELL}"': "'cell'",
    "cell=[3, 3, 3]": "'cell'",
    f'Unit_Cell="{CELL}"': "'Unit_Cell'",
    f'"Lattice "="{CELL}"': "'Lattice '",
    f'PBC="F F F" Lattice="{CELL}"': "'PBC'",
    'Pbc="F F F"': "'Pbc'",
    'periodic="F F F"': "'periodic'",
    f'pbc="T T T" PBC="F F F" Lattice="{CELL}"': "'PBC'",
    'pbc="FFF"': "pbc is 'FFF'",
    'pbc=""': "pbc is ''",
    'pbc="" x=1': "pbc has no value",
    'pbc="f f f"': "pbc is 'f f f'",
    "pbc=none": "pbc is 'none'",
    'pbc="T T"': "pbc is 'T T'",
    "pbc=F F F": "needs quotes",
    "pbc=2": "pbc is '2'",
    'pbc="[F, F, F]"': "pbc is",
    "energy=-1 energy=-2": "energy twice",
    "dipole=0.1 0.2 0.3": "dipole=0.1 .* needs quotes",
    f"Lattice={CELL}": "needs quotes",
    'config_type="bulk total_charge=1': "not closed",
    'path="C:\\dir\\" total_charge=1': "not closed",
    "path=C:\\dir\\ total_charge=1": "within 'path'",
    "a=5' b=3' total_charge=1": "within 'a'",
    "config_type=a,total_charge=1": "total_charge .* is read as a part",
    '"config_type=a total_charge=1"': "is read as a part",
    "total_charge: 1": "total_charge: 1, which ase does not read",
    "spin: 3": "spin: 3",
}
UNDERSTOOD = (
    "",
    "water",
    "i = 0, time = 0.000, E = -76.4",
    "energy: -5.07 gnorm: 0.0003 charge: 0",
    "guanine's ring",
    "config_type=bulk flag energy=-1",
    "smiles=CC(=O)[O-] total_charge=-1",
    'comment="total_charge=1"',
    "a = 3 b= 4 c =5",
    'pbc="0 0 0"',
    "pbc=F",
    f'pbc=[T, T, F] Lattice="{CELL}"',
    f'Lattice="{CELL}" lattice=fcc cell="1 1 1"',
    'cell="3 3 3" pbc="F F F"',
    "lattice=none",
    'energy="-1.0 " note=""',
    'x="_JSON [[1, 2], [3, 4]]"',
    'pbc="_JSON [false, false, false]"',
    "key={1 2 3} d=0.1,0.2,0.3",
    'uid=1e5 s="a\\"b=c"',
    "smiles=C=C url=http://x/y?a=1&charge=2",
    "energy=-1 energy=-1",
)


@pytest.mark.parametrize("line", MISREAD)
def test_comment_lines_that_ase_reads_as_something_else(line):
    with pytest.raises(InputError, match=f"frame 3 of a.xyz: .*{MISREAD[line]}") as caught:
        check_header(f"{COLUMNS} {line}", "frame 3 of a.xyz")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("line", UNDERSTOOD)
def test_comment_lines_that_ase_understands(line):
    """The line is divided as ase divides it, with columns in it and without."""
    for text in (line, f"{COLUMNS} {line}"):
        assert set(check_header(text, "")) == set(key_val_str_to_dict(text) if text else ())


@pytest.mark.parametrize(
    ("columns", "match"),
    [
        ("properties=species:S:1:pos:R:3:forces:R:3", "'properties'.*would be lost"),
        ("PROPERTIES=species:S:1:pos:R:3", "'PROPERTIES'"),
        ("Properties=species:S:1:pos:R:3:forces", "Properties has"),
        ("Properties=species:S:1:pos:R:3:q:X:1", "Properties has .*q:X:1"),
        ("Properties=species:S:1:Pos:R:3", "no pos:R:3"),
        ("Properties=species:S:1:pos:R:3:q:R:1:q:R:1", "a column twice"),
    ],
)
def test_columns_that_cannot_be_told_apart(columns, match):
    with pytest.raises(InputError, match=match):
        check_header(columns, "frame 0")


def test_a_label_that_is_glued_to_another_value():
    assert "config_type" in check_header("config_type=a,dft=1", "frame 0")
    with pytest.raises(InputError, match="dft in the comment line is read as a part"):
        check_header("config_type=a,dft=1", "frame 0", ["dft"])


@pytest.mark.parametrize("count", [50, pytest.param(None, marks=pytest.mark.full)])
@pytest.mark.parametrize("file", sorted(DATA.rglob("*xyz")), ids=lambda path: path.name)
def test_published_files_are_read_as_ase_reads_them(file, count):
    """Every frame of every published file passes, and nothing in it changes."""
    ours = [atoms for _, atoms in itertools.islice(read_frames(file), count)]
    theirs = list(itertools.islice(ase.io.iread(file, ":"), count))
    assert len(ours) == len(theirs) > 0
    for one, other in zip(ours, theirs, strict=True):
        assert one == other and list(one.info) == list(other.info) and list(one.arrays) == list(other.arrays)
        assert (one.calc is None) == (other.calc is None)
        for name, value in {} if one.calc is None else one.calc.results.items():
            np.testing.assert_array_equal(value, other.calc.results[name])


def water(header="", count=1):
    return f"3\n{header}\n" + "O 0 0 .12\nH 0 .76 -.48\nH 0 -.76 -.48\n" * count


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("blank.xyz", f"\n\n{water('n=0')}\n  \n{water('n=1')}\n\n"),
        ("windows.xyz", (water("n=0") + water("n=1")).replace("\n", "\r\n")),
        ("marked.xyz", "\ufeff" + water("n=0") + water("n=1")),
        ("tabs.extxyz", (water("n=0") + water("n=1")).replace(" ", "\t")),
        ("unfinished.xyz", (water("n=0") + water("n=1")).rstrip("\n")),
        ("packed.xyz.gz", water("n=0") + water("n=1")),
        ("noname", water("n=0") + water("n=1")),
    ],
)
def test_line_ends_blank_lines_and_compression(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(gzip.compress(content.encode(), mtime=0) if name.endswith("gz") else content.encode())
    frames = [atoms for _, atoms in read_frames(path)]
    assert [atoms.info["n"] for atoms in frames] == [0, 1]
    for atoms in frames:
        np.testing.assert_array_equal(atoms.positions[:, 2], [0.12, -0.48, -0.48])


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (water() + "".join(water().splitlines(keepends=True)[:4]), "frame 1 of .* ends after 2 of its 3 atoms"),
        (water() + "3\n", "frame 1 of .* ends after 0 of its 3 atoms"),
        (water() + water(f"{COLUMNS}:f:R:3"), "frame 1 of .* atom 0 has 4 columns.*7 are expected"),
        (water() + water(COLUMNS).replace(".12", ".12 5"), "frame 1 .* atom 0 has 5 columns"),
        (water() + water().replace("0 .76", "*** .76"), r"frame 1 of .* cannot be read: .*\*\*\*"),
        (water() + water("VEC") + "VEC1 3 0 0\n", None),
        (water() + water("total_charge=1") + "VEC1 3 0 0\n", "frame 1 .*VEC1.*total_charge"),
    ],
)
def test_frames_that_cannot_be_read_are_passed_on_by_number(tmp_path, content, match):
    (tmp_path / "a.xyz").write_text(content + water() if "ends after" not in str(match) else content)
    found = dict(read_frames(tmp_path / "a.xyz"))
    assert isinstance(found[0], Atoms)
    if match is None:
        assert found[1].pbc.tolist() == [True, False, False] and len(found) == 3
        return
    assert isinstance(found[1], InputError)
    with pytest.raises(InputError, match=match):
        raise found[1]
    assert "ends after" in match or isinstance(found[2], Atoms)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (water(count=2), "line 6 is 'O 0 0 .12', where frame 1 should begin"),
        (water().replace("H 0 .76", "\nH 0 .76"), "line 4 is blank, in the middle of frame 0"),
        ("three\n" + water(), "line 1 is 'three'"),
        ("\xff".encode("latin-1"), "ase cannot read"),
        (gzip.compress(water().encode(), mtime=0)[:-8], "ase cannot read"),
        ("", "is empty"),
    ],
)
def test_files_that_are_no_lists_of_frames(tmp_path, content, match):
    raw = content if isinstance(content, bytes) else content.encode()
    path = tmp_path / ("a.xyz.gz" if raw[:2] == b"\x1f\x8b" else "a.xyz")
    path.write_bytes(raw)
    with pytest.raises(InputError, match=match):
        list(read_frames(path))
    with pytest.raises(InputError, match="no file"):
        read_frames(tmp_path / "nowhere.xyz")


def test_columns_without_a_name_are_told_of(tmp_path):
    (tmp_path / "a.xyz").write_text("1\nneon\nNe 0 0 0 0.5\n")
    with pytest.warns(UserWarning, match="columns after the positions"):
        assert len(list(read_frames(tmp_path / "a.xyz"))) == 1


@pytest.mark.parametrize("name", ["a.traj", "a.json", "a.db", "POSCAR", "a.cfg", "a.cif", "a.xsf"])
def test_other_containers(tmp_path, name):
    crystal = bulk("NaCl", "rocksalt", a=5.6)
    crystal.calc = SinglePointCalculator(crystal, energy=-3.0, forces=np.zeros((2, 3)))
    ase.io.write(tmp_path / name, crystal)
    theirs = ase.io.read(tmp_path / name, ":")
    ours = [atoms for _, atoms in read_frames(tmp_path / name)]
    assert len(ours) == len(theirs) == 1 and ours[0].pbc.all()
    np.testing.assert_array_equal(ours[0].positions, theirs[0].positions)
    assert first_structure(tmp_path / name).get_chemical_formula() == crystal.get_chemical_formula()


@pytest.mark.parametrize("name", ["a.db", "a.json"])
def test_key_value_pairs_of_databases(tmp_path, name):
    """ase.io.read drops them."""
    with ase.db.connect(tmp_path / name) as database:
        for charge in (0, 1):
            database.write(molecule("H2O"), total_charge=charge, data={"gap": [1.0, 2.0]})
    frames = [atoms for _, atoms in read_frames(tmp_path / name)]
    assert [atoms.info["total_charge"] for atoms in frames] == [0, 1]
    assert list(frames[1].info["data"]["gap"]) == [1.0, 2.0]


def test_only_what_is_asked_for_is_read(tmp_path):
    """The second frame is wrong, and nobody has got that far."""
    (tmp_path / "a.xyz").write_text(water() + water("pbc=FFF"))
    frames = read_frames(tmp_path / "a.xyz")
    assert isinstance(next(frames)[1], Atoms)
    assert isinstance(next(frames)[1], InputError)

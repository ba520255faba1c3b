"""Molecules put together by a rule: one skeleton with one or two groups."""

from itertools import combinations

from training.shipped.organic_gfn2.chance import fraction

TWO_GROUPS_SHARE = 0.27  # which part of the molecules with two groups is kept, chosen by a hash of the name

# Skeletons with a place for one group, and with places for two.
ONE_PLACE = {
    "methane": "C{}",
    "ethane": "CC{}",
    "isopropane": "CC(C){}",
    "ethene": "C=C{}",
    "ethyne": "C#C{}",
    "cyclopropane": "C1CC1{}",
    "cyclobutane": "C1CCC1{}",
    "cyclopentane": "C1CCCC1{}",
    "benzene": "c1ccccc1{}",
    "pyridine2": "n1ccccc1{}",
    "pyridine4": "c1cnccc1{}",
    "furan": "o1cccc1{}",
    "thiophene": "s1cccc1{}",
    "pyrrole": "[nH]1cccc1{}",
    "imidazole": "[nH]1cncc1{}",
    "thiazole": "s1cncc1{}",
    "oxazole": "o1ccnc1{}",
}
TWO_PLACES = {
    "methylene": "C({}){}",
    "ethylene": "C({})C{}",
    "vinylene": "C({})=C{}",
    "propylene": "C({})CC{}",
    "carbonyl": "C(=O)({}){}",
    "ortho": "c1({})ccccc1{}",
}
NEUTRAL = {
    "methyl": "C",
    "vinyl": "C=C",
    "ethynyl": "C#C",
    "cyano": "C#N",
    "formyl": "C=O",
    "acetyl": "C(C)=O",
    "carboxyl": "C(=O)O",
    "carbamoyl": "C(=O)N",
    "ester": "C(=O)OC",
    "thioamide": "C(=S)N",
    "trifluoromethyl": "C(F)(F)F",
    "difluoromethyl": "C(F)F",
    "chloromethyl": "CCl",
    "hydroxymethyl": "CO",
    "aminomethyl": "CN",
    "aldoxime": "C=NO",
    "amidine": "C(=N)N",
    "hydroxy": "O",
    "methoxy": "OC",
    "formyloxy": "OC=O",
    "phosphonooxy": "OP(=O)(O)O",
    "amino": "N",
    "methylamino": "NC",
    "dimethylamino": "N(C)C",
    "formamido": "NC=O",
    "nitro": "[N+](=O)[O-]",
    "nitroso": "N=O",
    "azido": "N=[N+]=[N-]",
    "isocyanato": "N=C=O",
    "ureido": "NC(=O)N",
    "fluoro": "F",
    "chloro": "Cl",
    "thiol": "S",
    "methylthio": "SC",
    "thiocyanato": "SC#N",
    "sulfinyl": "S(C)=O",
    "sulfonyl": "S(C)(=O)=O",
    "sulfonamide": "S(N)(=O)=O",
    "sulfonyl_chloride": "S(=O)(=O)Cl",
    "sulfo": "S(=O)(=O)O",
    "phosphino": "P",
    "dimethylphosphino": "P(C)C",
    "phosphoryl": "P(C)(C)=O",
    "phosphono": "P(=O)(O)O",
    "dichlorophosphino": "P(Cl)Cl",
    "difluorophosphoryl": "P(F)(F)=O",
}
CATIONIC = {
    "ammonio": "[NH3+]",
    "trimethylammonio": "[N+](C)(C)C",
    "dimethylammonio": "[NH+](C)C",
    "dimethylsulfonio": "[S+](C)C",
    "trimethylphosphonio": "[P+](C)(C)C",
    "amidinio": "C(N)=[NH2+]",
    "guanidinio": "NC(N)=[NH2+]",
    "iminio": "C=[NH2+]",
    "hydroxycarbenio": "C=[OH+]",
}
ANIONIC = {
    "carboxylato": "C(=O)[O-]",
    "oxido": "[O-]",
    "sulfido": "[S-]",
    "sulfonato": "S(=O)(=O)[O-]",
    "sulfinato": "S(=O)[O-]",
    "phosphonato": "P(=O)(O)[O-]",
    "phosphato": "OP(=O)(O)[O-]",
    "sulfato": "OS(=O)(=O)[O-]",
    "amidato": "C(=O)[NH-]",
}
# Positive groups that have no proton to give: only they stay beside a negative group without a solvent.
WITHOUT_PROTONS = ("trimethylammonio", "dimethylsulfonio", "trimethylphosphonio")
# Carbonyl compounds that are not put together otherwise.
BESIDE_CARBONYL = ("methyl", "vinyl", "cyano", "trifluoromethyl", "methoxy", "amino", "methylamino", "fluoro", "chloro",
                   "methylthio")  # fmt: skip
GROUPS = NEUTRAL | CATIONIC | ANIONIC


def joined() -> list[tuple[str, str]]:
    """Molecules of one skeleton and one or two groups: names with a dot in them, and SMILES."""
    found = []
    for skeleton, pattern in ONE_PLACE.items():
        for group, smiles in GROUPS.items():
            found.append((f"{skeleton}.{group}", pattern.format(smiles), 1.0))
    for skeleton, pattern in TWO_PLACES.items():
        for first, second in combinations(GROUPS, 2):
            if _go_together(skeleton, first, second):
                smiles = pattern.format(GROUPS[first], GROUPS[second])
                both = first in WITHOUT_PROTONS and second in ANIONIC  # few, so all of them are kept
                found.append((f"{skeleton}.{first}.{second}", smiles, 1.0 if both else TWO_GROUPS_SHARE))
    return [(name, smiles) for name, smiles, share in found if fraction(name) < share]


def _go_together(skeleton: str, first: str, second: str) -> bool:
    """Whether two groups on one skeleton are a molecule that one would look for."""
    charged = [group for group in (first, second) if group not in NEUTRAL]
    if len(charged) == 2:
        return skeleton in ("methylene", "propylene", "ethylene") and first in WITHOUT_PROTONS and second in ANIONIC
    # Two heteroatoms on one carbon leave too easily, but for the derivatives of carbonic acid.
    hetero = [group for group in (first, second) if not GROUPS[group].startswith("C")]
    if skeleton == "methylene":
        return len(hetero) < 2
    if skeleton == "carbonyl":
        return first in BESIDE_CARBONYL and second in BESIDE_CARBONYL
    return True

"""The pages of trained models against their cards."""

import re
import sys
from pathlib import Path

import yaml

sys.path.insert(0, str(Path(__file__).parents[2] / "docs"))
import model_pages  # noqa: E402

from zoo.store.registry import SHIPPED


def test_every_model_has_a_page_with_the_numbers_of_its_card(tmp_path):
    (tmp_path / "phi-mace-small.gone.md").write_text("of a model that is not there any more")
    names = model_pages.write_pages(tmp_path)
    assert names and {path.stem for path in tmp_path.glob("*.md")} == {*names, "index"}
    index = (tmp_path / "index.md").read_text()
    for name in names:
        text = (tmp_path / f"{name}.md").read_text()
        content = yaml.safe_load((SHIPPED / name / "card.yaml").read_text())
        with_phi = content["errors"][0]
        (bare,) = (row for row in content["errors"] if (row["model"], row["set"]) == ("bare host", with_phi["set"]))
        forces = [float(re.search(r"RMSE ([\d.]+)", row["forces"])[1]) for row in (with_phi, bare)]
        assert f"| forces, meV/Å | {forces[0]:.3g} | {forces[1]:.3g} |" in text, name
        assert f"{forces[0]:.3g} ({forces[1]:.3g})" in index and str(content["level_of_theory"]) in text
        assert all(f"| {row['set']} | with Φ | without Φ |" in text for row in content["errors"])
        assert ("| charges, e | " in text) == ("charges" in with_phi)
        assert (tmp_path / f"{name}.svg").read_text().rstrip().endswith("</svg>")

"use strict";
// One viewer, which shows the chosen structure in the chosen colours. What it has drawn stands in data attributes.
(function () {
  const structures = JSON.parse(document.getElementById("structures").textContent);
  const place = document.getElementById("viewer");
  const FIELDS = { charges: { title: "Charge", unit: "e" }, potential: { title: "Potential", unit: "V" } };
  const [NEGATIVE, NEUTRAL, POSITIVE] = [[178, 24, 43], [228, 228, 228], [33, 102, 172]];
  let viewer, model, chosen = structures[0], colour = "element", active = false;

  function number(value) {
    return (Math.abs(value) < 10 ? value.toFixed(3) : value.toFixed(1)).replace("-", "−");
  }

  // The largest size of a value in this structure: the scale is the same on both sides of zero.
  function limit(field) {
    return chosen[field].reduce((most, value) => Math.max(most, Math.abs(value)), 0) || 1;
  }

  function diverging(share) {
    const end = share < 0 ? NEGATIVE : POSITIVE;
    const size = Math.min(Math.abs(share), 1);
    return NEUTRAL.reduce((sum, from, i) => (sum << 8) + Math.round(from + size * (end[i] - from)), 0);
  }

  function colourOf(atom) {
    if (colour === "element") {
      const known = $3Dmol.elementColors.Jmol[atom.elem];
      return atom.elem === "H" ? 0xd0d0d0 : known === undefined ? 0xff69b4 : known; // white is not seen on white
    }
    return diverging(chosen[colour][atom.index] / limit(colour));
  }

  function paint() {
    model.setStyle({}, { stick: { radius: 0.11, colorfunc: colourOf }, sphere: { scale: 0.27, colorfunc: colourOf } });
    viewer.render();
    const scale = document.getElementById("scale");
    scale.hidden = colour === "element";
    if (!scale.hidden) {
      const [low, high] = scale.getElementsByTagName("span");
      const unit = FIELDS[colour].unit;
      low.textContent = `${number(-limit(colour))} ${unit}`;
      high.textContent = `+${number(limit(colour))} ${unit}`;
    }
    place.dataset.colour = colour;
    for (const button of document.querySelectorAll("#colour-choice button")) {
      button.setAttribute("aria-pressed", String(button.value === colour));
    }
  }

  function describe(atom) {
    const parts = [`${atom.elem} ${atom.index}`];
    for (const [field, { title, unit }] of Object.entries(FIELDS)) {
      if (chosen[field]) parts.push(`${title.toLowerCase()} ${number(chosen[field][atom.index])} ${unit}`);
    }
    document.getElementById("atom").textContent = parts.join(", ");
  }

  function show(structure) {
    chosen = structure;
    viewer.removeAllModels();
    viewer.removeAllShapes();
    const lines = structure.symbols.map((symbol, i) => `${symbol} ${structure.positions[i].join(" ")}`);
    model = viewer.addModel([lines.length, "", ...lines].join("\n"), "xyz");
    for (const [start, end] of structure.cell) {
      const [a, b] = [start, end].map(([x, y, z]) => ({ x, y, z }));
      viewer.addCylinder({ start: a, end: b, radius: 0.04, color: "#8c8f94", fromCap: 1, toCap: 1 });
    }
    model.setClickable({}, true, describe);
    model.setHoverable({}, true, describe, () => {});
    viewer.setHoverDuration(50);
    paint();
    viewer.zoomTo();
    viewer.zoom(1.25); // the library leaves a wide margin
    viewer.render();
    const errors = Object.entries(structure.errors).map(([title, text]) => `${title} ${text}`);
    const about = [structure.name, structure.formula, `total charge ${structure.total_charge}`, ...errors];
    document.getElementById("about").textContent = about.join(" · ");
    place.dataset.atoms = model.selectedAtoms({}).length;
    place.dataset.edges = structure.cell.length;
    document.querySelectorAll("#structure-choice button").forEach((button, i) => {
      button.setAttribute("aria-pressed", String(structures[i] === structure));
    });
  }

  function button(parent, text, more, act) {
    const made = document.createElement("button");
    made.type = "button";
    made.append(text);
    if (more) {
      const small = document.createElement("small");
      small.textContent = more;
      made.append(small);
    }
    made.addEventListener("click", act);
    document.getElementById(parent).append(made);
    return made;
  }

  try {
    viewer = $3Dmol.createViewer(place, { backgroundColor: "white", backgroundAlpha: 0, antialias: true });
    if (!viewer) throw new Error("no WebGL");
  } catch (error) {
    place.textContent = "Structures cannot be drawn: this browser offers no WebGL.";
    place.dataset.missing = "WebGL";
    return;
  }
  for (const structure of structures) {
    button("structure-choice", structure.name, structure.why, () => show(structure));
  }
  const fields = Object.keys(FIELDS).filter((field) => structures.some((structure) => structure[field]));
  for (const name of fields.length ? [...fields, "element"] : []) {
    button("colour-choice", name === "element" ? "Element" : FIELDS[name].title, "", () => {
      colour = name;
      paint();
    }).value = name;
  }
  colour = fields[0] || "element";
  // The wheel scrolls the page until the viewer was clicked.
  place.addEventListener("pointerdown", () => { active = true; });
  place.addEventListener("pointerleave", () => { active = false; });
  place.addEventListener("wheel", (event) => { if (!active) event.stopPropagation(); }, { capture: true });
  show(structures[0]);
})();

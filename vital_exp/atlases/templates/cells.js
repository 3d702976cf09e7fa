"use strict";
(() => {
  const { load, address, layerLink, unitLink, make, number, count, tell, start } = vitalAtlas;
  const field = (id) => document.getElementById(id);
  let slides = new Map();
  const at = (row, column) => `${row}/${column}`;
  const zoomed = pictureDialog(field("zoom"), (key, across, down) => {
    const [row, column] = key.split("/").map(Number);
    return slides.get(at(row + down, column + across)) ?? null;
  }, ["column", "row"]);
  const cell = (layer, units, one) => {
    const told = `${count(one.vectors, "image")}, channel ${one.channel} above its mean most`;
    const link = units.has(one.channel) ? [make("a", { href: unitLink(layer.layer, one.channel) }, `channel ${one.channel} of ${layer.layer}`)] : [];
    slides.set(at(one.row, one.column), {
      key: at(one.row, one.column), src: one.picture, fallback: one.shown, alt: `Picture of a cell: ${told}`, title: `Row ${one.row + 1}, column ${one.column + 1}`,
      facts: [["images", "", number(one.vectors)], ["channel above its mean most", "", String(one.channel)]], nodes: link,
    });
    const image = make("img", { src: one.shown, alt: "", decoding: "async", width: 192, height: 192 });
    const button = make("button", { type: "button", title: told }, image);
    button.setAttribute("aria-label", `Row ${one.row + 1}, column ${one.column + 1}: ${told}`);
    button.style.gridArea = `${one.row + 1} / ${one.column + 1}`;
    button.addEventListener("click", () => zoomed.show(slides.get(at(one.row, one.column))));
    return button;
  };
  const show = async () => {
    const entrance = await load("entrance"), wanted = address(), layers = entrance.layers.filter((one) => one.cells);
    const layer = layers.find((one) => one.layer === (wanted.layer || layers[0]?.layer));
    if (!layer) return tell(`There is no activation atlas of ${wanted.layer || "a layer"} here. `, ...entrance.layers.map((one) => make("a", { href: layerLink(one.layer) }, one.layer)).flatMap((link) => [link, " "]));
    const found = await load(`${layer.folder}/cells`), units = new Set(layer.kind === "channel" ? (await vitalAtlas.units(layer)).units : []);
    slides = new Map();
    document.title = `Activation atlas of ${layer.layer}, ${entrance.network} – vital_exp`;
    field("home").textContent = entrance.network || "Atlas";
    field("trail").replaceChildren(make("a", { href: layerLink(layer.layer) }, layer.layer));
    field("title").replaceChildren(layer.layer, " ", make("span", {}, "activation atlas"));
    field("summary").textContent = `${count(found.cells.length, "cell")} of ${found.grid} × ${found.grid}, ${count(found.vectors, "image")}`;
    field("cells").style.gridTemplateColumns = `repeat(${found.grid}, 1fr)`;
    field("cells").replaceChildren(...found.cells.map((one) => cell(layer, units, one)));
    document.documentElement.dataset.ready = layer.layer;
  };
  start(show);
})();

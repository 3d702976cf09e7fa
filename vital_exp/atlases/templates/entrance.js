"use strict";
(() => {
  const { load, units, layerLink, unitLink, make, draw, number, percent, count, shape, ordered, tile, start } = vitalAtlas;
  const field = (id) => document.getElementById(id);
  const MOST = 60; // units found that are shown
  let entrance = null;

  // The network as blocks in order: as high as the map is large, as wide as there are units.
  const diagram = (layers) => {
    const FLOOR = 0, GAP = 22;
    const sides = layers.map((layer) => Math.log2(1 + Math.sqrt(layer.height * layer.width))), widths = layers.map((layer) => Math.log2(1 + layer.units));
    const largest = Math.max(...sides), widest = Math.max(...widths), least = Math.min(...widths);
    let x = 12;
    const boxes = layers.map((layer, place) => {
      const high = 26 + 96 * sides[place] / largest, wide = 12 + 30 * (widest > least ? (widths[place] - least) / (widest - least) : 0.5), deep = high * 0.3;
      const room = Math.max(wide + deep, 7.2 * Math.max(layer.layer.length, 8)) + GAP;
      const box = { layer, high, wide, deep, left: x + (room - wide - deep) / 2, middle: x + room / 2, top: FLOOR - high };
      x += room;
      return box;
    });
    const width = x + 12, by = new Map(boxes.map((box) => [box.layer.layer, box]));
    const links = boxes.flatMap((box) => box.layer.feeds.filter((fed) => by.has(fed)).map((fed) => link(box, by.get(fed), FLOOR)));
    const top = Math.min(...boxes.map((box) => box.top - box.deep * 0.62), ...links.map(({ peak }) => peak)) - 14;
    const svg = draw("svg", { viewBox: `0 ${top} ${width} ${FLOOR + 54 - top}`, width: Math.max(width, Math.min(field("diagram").clientWidth - 16, Math.min(1.7, 0.8 + 0.25 * layers.length) * width)) });
    svg.append(...links.map(({ path }) => path), ...boxes.map((box) => block(box, FLOOR)));
    return svg;
  };
  // To the next layer a line; further on an arc above those between.
  const link = (a, b, FLOOR) => {
    const from = a.left + a.wide + a.deep / 2, to = b.left, line = (d) => draw("path", { class: "link", d });
    if (b.layer.position - a.layer.position === 1) return { path: line(`M${from} ${FLOOR - 14}H${to}`), peak: FLOOR };
    const start = a.top - a.deep * 0.3, end = b.top - b.deep * 0.3, middle = b.left + (b.wide + b.deep) / 2;
    const peak = Math.min(start, end) - 20 - Math.min(40, Math.abs(middle - from) / 8);
    return { path: line(`M${from} ${start}C${from} ${peak} ${middle} ${peak} ${middle} ${end}`), peak };
  };
  const block = ({ layer, high, wide, deep, left, middle, top }, FLOOR) => {
    const d = deep * 0.62, share = layer.planned ? Math.min(1, (layer.done + layer.failed) / layer.planned) : 0;
    const node = draw("a", { href: layerLink(layer.layer), class: "block" });
    const faces = [
      draw("path", { class: "roof", d: `M${left} ${top}l${deep} ${-d}h${wide}l${-deep} ${d}z` }),
      draw("path", { class: "side", d: `M${left + wide} ${top}l${deep} ${-d}v${high}l${-deep} ${d}z` }),
      draw("rect", { class: "front", x: left, y: top, width: wide, height: high }),
      draw("rect", { class: "full", x: left, y: top + high * (1 - share), width: wide, height: high * share }),
    ];
    const text = (y, words, kind) => draw("text", { x: middle, y, class: kind }, words);
    node.append(draw("title", {}, `${layer.layer}: ${count(layer.units, layer.kind)}, ${shape(layer)}, ${percent(share)} done`), ...faces, text(FLOOR + 22, layer.layer, "own"), text(FLOOR + 39, `${number(layer.units)} · ${layer.height * layer.width > 1 ? `${layer.height}×${layer.width}` : "vector"}`, "more"));
    return node;
  };

  const row = (layer) => {
    const ready = layer.done + layer.failed, share = layer.planned ? ready / layer.planned : 0;
    const facts = [`${count(layer.units, layer.kind)}`, shape(layer), layer.field ? `receptive field ${layer.field} px` : "", layer.failed ? `${layer.failed} failed` : ""];
    const bar = make("progress", { max: Math.max(1, layer.planned), value: ready });
    bar.setAttribute("aria-label", `Progress of ${layer.layer}`);
    const progress = share < 1 ? make("span", { className: "progress" }, bar, `${number(ready)} of ${number(layer.planned)} done${layer.mined ? `, ${number(layer.mined)} more mined` : ""}`) : null;
    const about = make("div", { className: "about" }, make("h3", {}, make("a", { href: layerLink(layer.layer) }, layer.layer)), make("p", {}, facts.filter(Boolean).join(" · ")), progress);
    const tiles = layer.shown.filter(([, made]) => made).map(([unit, made]) => {
      const node = tile(layer, unit, { made, status: "m" });
      node.setAttribute("aria-label", `Unit ${unit} of ${layer.layer}`);
      return make("li", {}, node);
    });
    return make("li", { className: "layer" }, about, tiles.length ? make("ul", { className: "strip" }, ...tiles) : make("p", { className: "hint" }, layer.mined || layer.done ? "No pictures yet." : "Not begun yet."));
  };

  const head = () => {
    const layers = entrance.layers, total = layers.reduce((sum, layer) => sum + layer.planned, 0), ready = layers.reduce((sum, layer) => sum + layer.done + layer.failed, 0);
    const failed = layers.reduce((sum, layer) => sum + layer.failed, 0);
    document.title = `Atlas of ${entrance.network} – vital_exp`;
    field("title").replaceChildren(entrance.network || "Atlas");
    const b = (text) => make("b", {}, text);
    field("summary").replaceChildren(b(number(layers.length)), layers.length === 1 ? " layer, " : " layers, ", b(number(total)), " units", ...(failed ? [" (", make("span", { className: "bad" }, `${number(failed)} failed`), ")"] : []), ...(entrance.images ? [", ", b(number(entrance.images)), ` images ${entrance.folder}`] : []));
    if (!entrance.finished) {
      const bar = make("progress", { max: Math.max(1, total), value: ready });
      bar.setAttribute("aria-label", "Progress of the atlas");
      field("growing").replaceChildren(make("p", { className: "growing" }, bar, ` ${number(ready)} of ${number(total)} units are done: the atlas grows, or was interrupted. Reload this page to see more.`));
    }
    const facts = [...entrance.facts, ...Object.entries(entrance.versions)].map(([key, value]) => make("div", {}, make("dt", {}, key), make("dd", {}, String(value))));
    field("facts").replaceChildren(...facts);
    field("about").hidden = !facts.length;
  };

  // Search goes through the layers one by one; a later question ends an earlier one.
  let asked = 0;
  const search = async () => {
    const words = field("find").value.trim(), own = asked += 1;
    history.replaceState(history.state, "", words ? `#?find=${encodeURIComponent(words)}` : "#");
    field("results").hidden = !words;
    field("network").hidden = Boolean(words);
    field("found").textContent = words ? "searching" : "";
    if (!words) return;
    const [, layerWords, numberWords] = /^(.+):(\d+)$/.exec(words) ?? [];
    const hits = [];
    let total = 0;
    for (const layer of entrance.layers) {
      if (layerWords !== undefined && layer.layer.toLowerCase() !== layerWords.toLowerCase()) continue;
      const found = await units(layer);
      if (own !== asked) return;
      const places = ordered(layer, found, { find: numberWords ?? words });
      total += places.length;
      for (const place of places.slice(0, Math.max(0, MOST - hits.length))) hits.push(make("li", {}, tile(layer, found.units[place], { made: found.made[place], status: found.status[place], name: found.names[place] || found.classes[place][0], title: `${layer.layer}:${found.units[place]}` })));
      field("hits").replaceChildren(...hits);
    }
    field("found").textContent = total > hits.length ? `${number(total)} units, ${hits.length} shown` : total ? count(total, "unit") : "no unit is called so";
  };

  const show = async () => {
    entrance = await load("entrance");
    head();
    field("diagram").replaceChildren(diagram(entrance.layers.map((layer, position) => ({ ...layer, position }))));
    field("layers").replaceChildren(...entrance.layers.map(row));
    const words = vitalAtlas.address().find ?? "";
    if (words !== field("find").value.trim()) field("find").value = words;
    if (words) await search();
    document.documentElement.dataset.ready = "";
  };
  let pause = 0;
  field("find").addEventListener("input", () => { clearTimeout(pause); pause = setTimeout(search, 120); });
  field("search").addEventListener("submit", (event) => { event.preventDefault(); document.querySelector("#hits a")?.focus(); });
  start(show);
})();

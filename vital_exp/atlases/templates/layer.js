"use strict";
(() => {
  const { load, units, address, hash, layerLink, unitLink, carried, make, number, percent, count, shape, ordered, tile, tell, start } = vitalAtlas;
  const field = (id) => document.getElementById(id);
  const RAMP = ["#4b5fb5", "#3d8fc4", "#39a99a", "#8cb84a", "#e2b53a"]; // low to high, told apart by most colour-blind readers
  history.scrollRestoration = "manual"; // the page is as high as its tiles, which are not there yet
  let entrance, layer, found, state = {}, order = [];

  const grid = virtualGrid(field("tiles"), (place) => {
    const values = found.measures[state.sort.replace(/^-/, "")], name = found.names[place] || found.classes[place][0];
    return tile(layer, found.units[place], {
      made: found.made[place], status: found.status[place], name, images: state.tiles === "images", options: carried(state),
      text: values ? number(values[place]) : "\u00a0",
    });
  });
  const go = (point) => { location.href = unitLink(layer.layer, point.key, carried(state)); };
  const told = (place) => {
    const values = found.measures[state.sort.replace(/^-/, "")], name = found.names[place] || found.classes[place][0];
    return `${layer.kind} ${found.units[place]}${name ? `: ${name}` : ""}${values ? `, ${measure().title} ${number(values[place])}` : ""}`;
  };
  const map = unitMap(field("canvas"), { open: go, announce: (point) => { field("chosen").textContent = point ? point.label : "Point at a unit, or walk with the arrow keys."; } });
  const measure = () => entrance.measures.find((one) => one.key === state.sort.replace(/^-/, ""));

  const colours = (places) => {
    const values = found.measures[(state.sort || "clarity").replace(/^-/, "")];
    if (!values) return () => RAMP[1];
    const sorted = places.map((place) => values[place]).filter((value) => value !== null).sort((a, b) => a - b);
    const rank = (value) => { let low = 0, high = sorted.length; while (low < high) { const middle = (low + high) >> 1; if (sorted[middle] < value) low = middle + 1; else high = middle; } return low / Math.max(1, sorted.length); };
    return (place) => values[place] === null ? "#8a8a8a" : RAMP[Math.min(RAMP.length - 1, Math.floor(rank(values[place]) * RAMP.length))];
  };
  const drawMap = () => {
    const places = order.filter((place) => found.x[place] !== null && found.x[place] !== undefined), colour = colours(places);
    const points = places.map((place) => ({ x: found.x[place], y: 1 - found.y[place], key: found.units[place], place, label: told(place), colour: colour(place) }));
    const sprite = ({ key, place }) => {
      if (!found.made[place]) return null;
      const within = key % entrance.shard, across = 8, side = 48;
      return { src: `data/${layer.folder}/${Math.floor(key / entrance.shard)}.webp`, left: within % across * side, top: Math.floor(within / across) * side, side };
    };
    map.set({ points, sprite });
    const title = (measure() ?? entrance.measures.find((one) => one.key === "clarity"))?.title;
    field("ramp").replaceChildren(...(title ? [`${title}: low `, ...RAMP.map((shade) => { const dot = make("i"); dot.style.background = shade; return dot; }), " high"] : []));
    field("chosen").textContent = points.length ? "Point at a unit, or walk with the arrow keys." : order.length ? "The map is drawn when the atlas is complete." : "";
  };

  const arrange = () => {
    order = ordered(layer, found, state);
    field("shown").textContent = order.length < found.units.length ? `${number(order.length)} of ${count(found.units.length, "unit")}` : count(order.length, "unit");
    field("meaning").textContent = state.sort ? `${measure()?.meaning ?? ""}` : "Sort by a measure, and its meaning stands here.";
    field("tiles").hidden = state.view === "map";
    field("map").hidden = state.view !== "map";
    if (state.view === "map") drawMap(); else grid.set(order);
  };
  const controls = () => {
    if (field("find").value.trim() !== state.find.trim()) field("find").value = state.find;
    const key = state.sort.replace(/^-/, "");
    field("sort").value = key;
    const low = state.sort.startsWith("-");
    field("direction").hidden = !key;
    field("direction").textContent = low ? "lowest first" : "highest first";
    field("direction").setAttribute("aria-label", `Order: ${low ? "lowest" : "highest"} first. Change it`);
    for (const name of ["tiles", "view"]) for (const button of document.querySelectorAll(`[data-${name}]`)) button.setAttribute("aria-pressed", button.dataset[name] === state[name]);
  };
  // The address keeps what is shown, without a new entry in the history for each letter.
  const change = (next) => {
    state = { ...state, ...next };
    const { sort, find, tiles, view } = state;
    history.replaceState(history.state, "", hash(layer.layer, null, { sort, find, tiles, view }));
    controls();
    arrange();
  };
  const head = () => {
    const all = entrance.layers, place = all.indexOf(layer), ready = layer.done + layer.failed;
    document.title = `${layer.layer}, ${entrance.network} – vital_exp`;
    field("home").textContent = entrance.network || "Atlas";
    const beside = (step, words) => all[place + step] ? make("a", { href: layerLink(all[place + step].layer, carried({ sort: state.sort })) }, words(all[place + step].layer)) : null;
    field("trail").replaceChildren(...[beside(-1, (name) => `‹ ${name}`), beside(1, (name) => `${name} ›`)].filter(Boolean));
    field("title").replaceChildren(layer.layer, " ", make("span", {}, count(layer.units, layer.kind)));
    const parts = [shape(layer), layer.field ? `receptive field ${layer.field} px` : "", layer.feeds.length ? `feeds ${layer.feeds.join(", ")}` : "", ready < layer.planned ? `${number(ready)} of ${number(layer.planned)} done so far` : ""].filter(Boolean);
    const cells = layer.cells ? [parts.length ? " · " : "", make("a", { href: `cells.html${hash(layer.layer, null)}` }, "activation atlas")] : [];
    field("summary").replaceChildren(parts.join(" · "), ...cells, ...(layer.failed ? [parts.length ? " · " : "", make("a", { className: "bad", href: hash(layer.layer, null, { find: "failed" }) }, `${layer.failed} failed`)] : []));
    field("sort").replaceChildren(make("option", { value: "" }, "number"), ...entrance.measures.map((one) => make("option", { value: one.key }, one.title)));
    field("canvas").setAttribute("aria-label", `Map of the units of ${layer.layer}: arrows go from unit to unit, Enter opens one, plus and minus zoom, 0 shows all`);
  };
  const show = async () => {
    entrance = await load("entrance");
    const wanted = address(), name = wanted.layer || entrance.layers[0]?.layer;
    layer = entrance.layers.find((one) => one.layer === name);
    if (!layer) return tell(`There is no layer ${name} in this atlas. Its layers: `, ...entrance.layers.flatMap((one) => [make("a", { href: layerLink(one.layer) }, one.layer), " "]));
    state = { sort: "", find: "", tiles: "", view: "", ...wanted };
    if (!entrance.measures.some((one) => one.key === state.sort.replace(/^-/, ""))) state.sort = "";
    found = await units(layer);
    head();
    controls();
    arrange();
    document.documentElement.dataset.ready = "";
    const back = history.state?.scroll;
    if (back) scrollTo(0, back);
  };
  let pause = 0;
  field("find").addEventListener("input", () => { clearTimeout(pause); pause = setTimeout(() => change({ find: field("find").value }), 80); });
  field("sort").addEventListener("input", () => change({ sort: field("sort").value }));
  field("direction").addEventListener("click", () => change({ sort: state.sort.startsWith("-") ? state.sort.slice(1) : `-${state.sort}` }));
  for (const name of ["tiles", "view"]) for (const button of document.querySelectorAll(`[data-${name}]`)) button.addEventListener("click", () => change({ [name]: button.dataset[name] }));
  field("controls").addEventListener("submit", (event) => { event.preventDefault(); document.querySelector("#tiles a")?.focus(); });
  field("in").addEventListener("click", () => map.zoom(1.5));
  field("out").addEventListener("click", () => map.zoom(1 / 1.5));
  field("all").addEventListener("click", () => map.reset());
  // Where the reader was, for the way back from a unit.
  let still = 0;
  addEventListener("scroll", () => { clearTimeout(still); still = setTimeout(() => { if (layer) history.replaceState({ scroll: scrollY }, "", location.hash); }, 150); }, { passive: true });
  window.vitalMap = map;
  start(show);
})();

"use strict";
(() => {
  const { load, address, hash, make, number, count, tile, start } = vitalAtlas;
  const field = (id) => document.getElementById(id);
  let entrance, pairs = [], state = {};
  const side = (key, [layer, unit, name, made]) => {
    if (layer === null) return make("span", { className: "tile" }, make("span", { className: "blank" }, "no match"), make("span", { className: "caption" }, "\u00a0"));
    const { folders, link, network } = entrance[key], where = { layer, folder: `${key}/${folders[layer]}` };
    const node = tile(where, unit, { made: Math.max(0, made), name, title: `${layer}:${unit}`, status: "m", images: state.tiles === "images" });
    if (made < 0) node.querySelector(".blank").textContent = "not in its atlas";
    if (link === null || made < 0) node.removeAttribute("href"); else node.href = `${link}/${node.getAttribute("href")}`;
    node.title = `${layer}:${unit} of ${network}`;
    return node;
  };
  const grid = virtualGrid(field("tiles"), (pair) => make("div", { className: "couple" },
    make("div", { className: "couple-tiles" }, side("a", pair), side("b", pair.slice(4))),
    make("p", {}, "change ", make("b", {}, number(pair[9])), pair[8] === null ? "" : `, correlation ${number(pair[8])}`)));
  const arrange = () => {
    const words = state.find.trim().toLowerCase();
    const fits = (pair) => (!state.layer || pair[0] === state.layer) && (!words || [pair[1], pair[5]].some((unit) => String(unit) === words) || (!/^\d+$/.test(words) && [pair[2], pair[6], `${pair[0]}:${pair[1]}`].some((text) => text.toLowerCase().includes(words))));
    const shown = pairs.filter(fits); // changed most first, as written
    if (state.sort === "least") shown.reverse();
    if (state.sort === "number") shown.sort((a, b) => a[0] === b[0] ? a[1] - b[1] : pairs.layers.indexOf(a[0]) - pairs.layers.indexOf(b[0]));
    field("shown").textContent = shown.length < pairs.length ? `${number(shown.length)} of ${count(pairs.length, "unit")}` : count(pairs.length, "unit");
    grid.set(shown);
    for (const button of document.querySelectorAll("[data-tiles]")) button.setAttribute("aria-pressed", button.dataset.tiles === state.tiles);
  };
  const change = (next) => {
    state = { ...state, ...next };
    const { sort, find, tiles, layer } = state;
    history.replaceState(null, "", hash(layer, null, { sort, find, tiles }));
    arrange();
  };
  const show = async () => {
    entrance = await load("entrance");
    pairs = [];
    for (let part = 0; part < entrance.parts; part += 1) pairs.push(...await load(`pairs-${part}`));
    pairs.layers = Object.keys(entrance.a.folders);
    const { a, b } = entrance, b_ = (text) => make("b", {}, text), title = (one, other) => one.network === other.network ? one.name : one.network;
    document.title = `${title(a, b)} and ${title(b, a)} – vital_exp`;
    field("title").replaceChildren(title(a, b), " ", make("span", {}, `and ${title(b, a)}`));
    field("summary").replaceChildren(b_(number(entrance.count)), ` units${a.network === b.network ? ` of ${a.network}` : ""}`, ...(entrance.images ? [" over ", b_(number(entrance.images)), " images"] : []));
    field("layer").replaceChildren(make("option", { value: "" }, "all"), ...pairs.layers.map((layer) => make("option", {}, layer)));
    state = { sort: "", find: "", tiles: "", ...address() };
    field("find").value = state.find;
    field("sort").value = state.sort;
    field("layer").value = state.layer;
    arrange();
    document.documentElement.dataset.ready = "";
  };
  let pause = 0;
  field("find").addEventListener("input", () => { clearTimeout(pause); pause = setTimeout(() => change({ find: field("find").value }), 80); });
  for (const name of ["layer", "sort"]) field(name).addEventListener("input", () => change({ [name]: field(name).value }));
  for (const button of document.querySelectorAll("[data-tiles]")) button.addEventListener("click", () => change({ tiles: button.dataset.tiles }));
  field("controls").addEventListener("submit", (event) => event.preventDefault());
  start(show);
})();

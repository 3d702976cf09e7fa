"use strict";
(() => {
  const { load, details, units, address, hash, layerLink, unitLink, carried, make, draw, number, percent, count, ordered, thumbnail, tile, tell, start } = vitalAtlas;
  const field = (id) => document.getElementById(id);
  const BINS = 28, NEAREST = 16; // bars of a strip; neighbours shown
  const MODES = [["image", "image"], ["window", "window"], ["fires", "where it fires"]];
  const BESIDE = 9; // images beside a picture
  let entrance, layer, found, own, unit, place, state, beside = {}, slides = [], keys = new Map();
  let mode = "image", masked = false; // as the reader last chose, for all units
  const zoomed = pictureDialog(field("zoom"), (key, across, down) => slides[key + across + down] ?? null);
  const slide = (image, one, properties) => { // one: what is shown, which has one slide, wherever it stands on the page
    if (!keys.has(one)) { keys.set(one, slides.length); slides.push({ key: slides.length, ...properties }); }
    const key = keys.get(one);
    opens(image, () => zoomed.show(slides[key]));
    return image;
  };
  const section = (id, title, hint, ...children) => make("section", { id, className: "part" }, make("h2", {}, title), hint ? make("p", { className: "hint" }, hint) : null, ...children);
  const choice = (label, options, chosen, act) => {
    const buttons = options.map(([value, text]) => {
      const button = make("button", { type: "button" }, text);
      button.setAttribute("aria-pressed", value === chosen);
      button.addEventListener("click", () => { for (const one of buttons) one.setAttribute("aria-pressed", one === button); act(value); });
      return button;
    });
    const set = make("fieldset", { className: "choice" }, ...buttons);
    set.setAttribute("aria-label", label);
    return set;
  };
  const label = () => `${layer.kind} ${unit} of ${layer.layer}`;

  // Images: whole with a frame around the window, the window alone, or the window with where the unit fires.
  const shares = (box) => { const [height, width] = entrance.input; return box && width ? [box[0] / width, box[1] / height, box[2] / width, box[3] / height] : null; };
  const frame = ([left, top, right, bottom]) => {
    const node = make("span", { className: "frame" });
    Object.assign(node.style, { left: `${100 * left}%`, top: `${100 * top}%`, width: `${100 * (right - left)}%`, height: `${100 * (bottom - top)}%` });
    return node;
  };
  const paint = (figure, one, image) => {
    const box = shares(one.box), window = figure.firstElementChild, wanted = figure.classList.contains("small") ? "window" : mode;
    const showing = wanted === "fires" && one.overlay ? "fires" : wanted !== "image" && box ? "window" : "image";
    figure.dataset.mode = showing;
    image.src = showing === "fires" || !one.file ? one.overlay : one.file;
    window.replaceChildren(image, ...(showing === "image" && box && (box[2] - box[0] < 0.98 || box[3] - box[1] < 0.98) ? [frame(box)] : []));
    const cut = showing === "window" ? box : [0, 0, 1, 1];
    Object.assign(image.style, { width: `${100 / (cut[2] - cut[0])}%`, height: `${100 / (cut[3] - cut[1])}%`, left: `${-100 * cut[0] / (cut[2] - cut[0])}%`, top: `${-100 * cut[1] / (cut[3] - cut[1])}%` });
  };
  const photograph = (one, rank, small = false) => {
    const src = one.file ?? one.overlay;
    if (!src) return null;
    const kind = one.kind === "weakest" ? "weakest" : "strongest", name = one.path.split("/").at(-1);
    const image = make("img", { alt: `${kind} image ${rank + 1}, activation ${number(one.value)}`, decoding: "async", loading: "lazy" });
    const figure = make("figure", { className: small ? "photo small" : "photo" }, make("span", { className: "window" }), small ? null : make("figcaption", {}, make("b", {}, number(one.value)), one.facet === null || layerFacets() < 2 ? "" : ` facet ${one.facet}`));
    figure.paint = () => paint(figure, one, image);
    figure.paint();
    if (one.overlay && one.file) image.loading = "eager";
    const facts = [["activation", "", number(one.value)], ["rank", "", `${rank + 1}, ${kind}`], ...(one.facet === null ? [] : [["facet", "", String(one.facet)]]), ["file", "", one.path]];
    const nodes = one.overlay && one.file ? [make("p", {}, "where it fires in the image's window"), make("img", { className: "real", src: one.overlay, alt: `Where ${label()} fires in this image` })] : [];
    return slide(image, one, { src, alt: image.alt, title: `${kind[0].toUpperCase()}${kind.slice(1)} image ${rank + 1} of ${label()}`, facts, nodes, file: name.replace(/\.\w+$/, "") }) && figure;
  };
  const layerFacets = () => own.facets.length;
  const repaint = () => document.querySelectorAll(".photo").forEach((figure) => figure.paint?.());

  const facet = (one) => {
    const words = [one.share === null ? "" : one.share === 1 ? "all of its strongest images" : `${percent(one.share)} of its strongest images`, one.coherence === null ? "" : `coherence ${number(one.coherence)}`].filter(Boolean).join(", ");
    const title = layerFacets() > 1 ? `Facet ${one.facet}` : "Picture";
    const facts = [["activation", "", one.activation], ["of the largest by an image", "", one.activation_ratio], ["probability", "", one.probability], ["seconds", "", one.seconds]].filter(([, , value]) => value !== null).map(([name, key, value]) => [name, key, name.startsWith("of the") ? percent(value) : number(value)]);
    const image = one.picture ? make("img", { className: "picture", src: masked && one.masked ? one.masked : one.picture, alt: `Picture of ${label()}, facet ${one.facet}`, decoding: "async" }) : null;
    if (image) {
      image.dataset.plain = one.picture;
      image.dataset.masked = one.masked ?? one.picture;
      slide(image, one, { src: one.picture, masked: one.masked, alt: image.alt, title: `${title} of ${label()}`, words, facts, file: one.picture.split("/").at(-1).replace(/\.\w+$/, "") });
    }
    const top = own.images.filter((two) => two.kind !== "weakest").sort((a, b) => a.rank - b.rank), mine = layerFacets() > 1 ? top.filter((two) => two.facet === one.facet) : top;
    const shown = mine.slice(0, BESIDE).map((two) => photograph(two, two.rank - 1, true)).filter(Boolean);
    const members = shown.length ? make("div", { className: "members" }, ...shown) : null;
    const numbers = facts.length ? make("dl", { className: "mini" }, ...facts.filter(([name]) => name !== "seconds").map(([name, , value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value)))) : null;
    return make("article", { className: "facet" }, image ?? make("p", { className: "blank" }, "no picture yet"), make("div", { className: "facet-words" }, make("h3", {}, title), words ? make("p", {}, words) : null, numbers, members));
  };
  const pictures = () => {
    if (!own.facets.length) return null;
    const flip = own.facets.some((one) => one.masked) ? choice("How pictures are shown", [["", "whole"], ["masked", "masked"]], masked ? "masked" : "", (value) => {
      masked = Boolean(value);
      for (const image of document.querySelectorAll(".facet .picture")) image.src = masked ? image.dataset.masked : image.dataset.plain;
    }) : null;
    const part = section("pictures", "What it looks for", own.facets.length > 1 ? "A picture of each facet: a group of its strongest images that look alike." : "");
    part.firstElementChild.append(...[flip].filter(Boolean));
    part.append(make("div", { className: "facets" }, ...own.facets.map(facet)));
    return part;
  };
  const photographs = (kind, title, hint) => {
    const shown = own.images.filter((one) => one.kind === kind).map((one, rank) => photograph(one, rank)).filter(Boolean);
    if (!shown.length) return null;
    const part = section(kind, title, hint, make("div", { className: "photos" }, ...shown));
    if (kind === "strongest" && own.images.some((one) => one.box || one.overlay)) part.firstElementChild.append(choice("What of the images is shown", MODES.filter(([value]) => value !== "fires" || own.images.some((one) => one.overlay)), mode, (value) => { mode = value; repaint(); }));
    return part;
  };

  // Numbers, each among those of the layer.
  const strip = (values, value) => {
    const known = values.filter((one) => one !== null), low = Math.min(...known), high = Math.max(...known), counts = Array(BINS).fill(0);
    const bin = (one) => Math.min(BINS - 1, Math.floor((one - low) / (high - low || 1) * BINS));
    for (const one of known) counts[bin(one)] += 1;
    const most = Math.max(...counts), svg = draw("svg", { class: "strip-chart", viewBox: `0 0 ${BINS * 4} 20`, preserveAspectRatio: "none", "aria-hidden": "true" });
    counts.forEach((many, at) => { const high = many ? 2 + 17 * (many / most) ** 0.6 : 0.6; svg.append(draw("rect", { class: at === bin(value) ? "here" : "", x: at * 4, y: 20 - high, width: 3.2, height: high })); });
    return svg;
  };
  const numbers = () => {
    const rows = entrance.measures.map((one) => [one, found.measures[one.key]?.[place] ?? null]).filter(([, value]) => value !== null).map(([one, value]) => {
      const values = found.measures[one.key], known = values.filter((other) => other !== null), below = known.filter((other) => other < value).length;
      const rank = known.length > 1 ? `more than ${percent(below / (known.length - 1))} of the layer` : "";
      const name = make("th", { scope: "row", title: one.meaning }, make("a", { href: layerLink(layer.layer, { sort: one.key }) }, one.title));
      return make("tr", {}, name, make("td", {}, make("b", {}, number(value))), make("td", { className: "among", title: rank }, strip(values, value), make("span", { className: "unseen" }, rank)));
    });
    if (!rows.length) return null;
    const meanings = make("details", {}, make("summary", {}, "what these are"), make("dl", { className: "meanings" }, ...entrance.measures.filter((one) => found.measures[one.key]?.[place] !== null && one.meaning).flatMap((one) => [make("dt", {}, one.title), make("dd", {}, one.meaning)])));
    return section("numbers", "Numbers", "Each among those of the whole layer; a name sorts the layer by it.", make("table", { className: "numbers" }, ...rows), meanings);
  };
  const histogram = () => {
    const told = own.histogram;
    if (!told || !told.counts.length) return null;
    const WIDTH = 320, HEIGHT = 96, most = Math.max(...told.counts), step = WIDTH / told.counts.length;
    const zero = told.low < 0 && told.high > 0 ? WIDTH * -told.low / (told.high - told.low) : null;
    const svg = draw("svg", { class: "histogram", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": `Histogram: how many images have which activation, from ${number(told.low)} to ${number(told.high)}` });
    told.counts.forEach((many, bin) => {
      const high = many ? 1.5 + (HEIGHT - 2) * (many / most) ** 0.5 : 0;
      const at = (edge) => number(Number((told.low + (told.high - told.low) * edge / told.counts.length).toPrecision(3)));
      svg.append(draw("rect", { x: bin * step, y: HEIGHT - high, width: Math.max(1, step - 1.5), height: high, rx: 1 }, draw("title", {}, `${count(many, "image")} from ${at(bin)} to ${at(bin + 1)}`)));
    });
    if (zero !== null) svg.append(draw("path", { class: "zero", d: `M${zero} 0V${HEIGHT}` }));
    return section("histogram", "Activations", "How many images have which activation; heights are square roots.", svg, make("p", { className: "axis" }, make("span", {}, number(told.low)), zero !== null ? make("span", {}, "the line is 0") : null, make("span", {}, number(told.high))));
  };
  const classes = () => {
    if (!own.classes.length) return null;
    const most = Math.max(...own.classes.map(([, value]) => Math.abs(value))) || 1, FIRST = 10;
    const rows = own.classes.slice(0, FIRST).map(([name, value]) => {
      const bar = make("span", { className: "bar-of" });
      bar.style.width = `${100 * Math.max(0, value) / most}%`;
      return make("li", {}, make("span", { className: "class" }, name), make("span", { className: "track" }, bar), make("span", { className: "value" }, number(value)));
    });
    return section("classes", "Classes", `Mean activation by the images' folder${own.classCount > rows.length ? `: the strongest ${rows.length} of ${number(own.classCount)}` : ""}.`, make("ol", { className: "bars-list" }, ...rows));
  };

  const neighbours = (kind, title, hint) => {
    const rows = own.neighbours.filter(([one]) => one === kind);
    if (!rows.length) return null;
    const by = entrance.layers, tiles = rows.slice(0, NEAREST).map(([, name, other, value, called, made]) => {
      const where = by.find((one) => one.layer === name), away = name !== layer.layer;
      const node = tile(where, other, { made: Math.max(0, made), name: called, status: "m", title: away ? `${name}:${other}` : String(other), text: `${value < 0 ? "" : kind === "similar" ? "" : "+"}${number(value)}`, options: away ? {} : carried(state) });
      if (made < 0) { node.removeAttribute("href"); node.querySelector(".blank").textContent = "not in this atlas"; }
      if (kind !== "similar") node.classList.add(value < 0 ? "inhibits" : "excites");
      return make("li", {}, node);
    });
    return section(kind, title, hint, make("ul", { className: "tiles row" }, ...tiles));
  };
  const basis = (kind) => {
    const ways = new Set(own.neighbours.filter(([one]) => one === kind).map(([, other]) => entrance.edges[kind === "input" ? `${other}->${layer.layer}` : `${layer.layer}->${other}`]));
    return ways.has("weights") ? "By the weights that join them: + excites, − inhibits." : "By how their activations go together over the images.";
  };
  const trust = () => {
    const lines = own.audits.map((one) => make("li", {}, make("b", {}, one.check), `: ${one.verdict}`, one.page ? [" ", make("a", { href: one.page }, "the check's page")] : ""));
    if (own.circuit) lines.push(make("li", {}, make("a", { href: own.circuit }, "Its circuit"), ": the units it is made of, in pictures"));
    return lines.length ? section("audit", "Can the picture be trusted?", "", make("ul", { className: "verdict-list" }, ...lines)) : null;
  };
  const remake = () => {
    if (!layer.command) return null;
    const text = layer.command.replaceAll("{unit}", unit), code = make("code", {}, text);
    const copy = make("button", { type: "button" }, "copy");
    copy.addEventListener("click", async () => {
      try { await navigator.clipboard.writeText(text); copy.textContent = "copied"; } catch { getSelection().selectAllChildren(code); copy.textContent = "selected"; }
    });
    return section("command", "Make it again", "Folders and files stand without their places.", make("div", { className: "command" }, code, copy));
  };

  const head = () => {
    const name = found.names[place], score = found.measures.name_score?.[place] ?? null;
    document.title = `${layer.layer}:${unit}${name ? ` ${name}` : ""}, ${entrance.network} – vital_exp`;
    field("title").replaceChildren(`${layer.kind[0].toUpperCase()}${layer.kind.slice(1)} ${unit} `, make("span", {}, `of ${layer.layer}`));
    field("summary").replaceChildren(...(name ? [make("b", {}, name), score === null ? "" : ` ${number(score)}`] : [found.classes[place]?.length ? `strongest for ${found.classes[place].join(", ")}` : ""]));
  };
  const steps = () => {
    const places = ordered(layer, found, state), at = places.indexOf(place), all = at < 0 ? ordered(layer, found, { sort: state.sort }) : places, here = all.indexOf(place);
    const to = (step) => all[here + step] === undefined ? null : found.units[all[here + step]];
    const title = entrance.measures.find((one) => one.key === state.sort.replace(/^-/, ""))?.title;
    beside = { previous: to(-1), next: to(1) };
    for (const side of ["previous", "next"]) {
      const link = field(side), other = beside[side];
      if (other === null) { link.removeAttribute("href"); link.setAttribute("aria-disabled", "true"); } else { link.href = hash(layer.layer, other, carried(state)); link.removeAttribute("aria-disabled"); }
      link.querySelector("span").textContent = other === null ? "" : other;
      link.setAttribute("aria-label", other === null ? `no ${side} unit` : `${side} unit, ${other}`);
    }
    field("place").textContent = `${number(here + 1)} of ${number(all.length)}${title ? ` by ${title}` : ""}${at >= 0 && state.find ? `, found by “${state.find}”` : ""}`;
  };
  const show = async () => {
    entrance = await load("entrance");
    const wanted = address();
    state = { sort: "", find: "", ...wanted };
    layer = entrance.layers.find((one) => one.layer === wanted.layer);
    if (!layer) return tell(`There is no layer ${wanted.layer || "in the address"} in this atlas. Its layers: `, ...entrance.layers.flatMap((one) => [make("a", { href: layerLink(one.layer) }, one.layer), " "]));
    unit = wanted.unit;
    field("home").textContent = entrance.network || "Atlas";
    field("trail").replaceChildren(make("a", { href: layerLink(layer.layer, carried(state)) }, layer.layer));
    const mine = unit;
    const columns = await units(layer);
    if (mine !== unit) return; // another unit was asked for meanwhile
    found = columns;
    place = found.place.get(unit) ?? -1;
    if (place < 0) return tell(`${layer.layer} has no unit ${unit ?? ""} in this atlas${entrance.finished ? "" : " so far: it grows"}. `, make("a", { href: layerLink(layer.layer) }, `All units of ${layer.layer}`));
    const data = await details(entrance, layer, unit);
    if (mine !== unit) return;
    own = data;
    slides = [];
    keys = new Map();
    if (field("zoom").open) field("zoom").close();
    head();
    steps();
    const status = found.status[place];
    field("told").replaceChildren(...(status === "f" ? [make("p", { className: "note" }, `This unit failed: ${own.error || "no reason was recorded"}`)] : status === "m" && !entrance.finished ? [make("p", { className: "note soft" }, "Its pictures are not made yet.")] : []));
    const left = [pictures(), photographs("strongest", "Strongest images", "Their activation, and a frame around the window that the unit answers to."), photographs("weakest", "Weakest images", "")];
    const right = [numbers(), histogram(), classes()];
    const below = [neighbours("similar", "Nearest units", "By the cosine of their activations over the images."), neighbours("input", "What feeds it", basis("input")), neighbours("output", "What it feeds", basis("output")), trust(), remake()];
    const column = (kind, parts) => make("div", { className: kind }, ...parts.filter(Boolean));
    field("unit").replaceChildren(column("left", left), column("right", right), column("below", below));
    document.documentElement.dataset.ready = `${layer.layer}/${unit}`;
  };
  document.addEventListener("keydown", (event) => {
    const side = { ArrowLeft: "previous", ArrowRight: "next" }[event.key];
    if (!side || event.ctrlKey || event.metaKey || event.altKey || event.shiftKey || field("zoom").open || event.target.closest?.("input, select, textarea")) return;
    if (beside[side] === null || beside[side] === undefined) return;
    event.preventDefault();
    location.hash = hash(layer.layer, beside[side], carried(state));
  });
  addEventListener("hashchange", () => scrollTo(0, 0));
  start(show);
})();

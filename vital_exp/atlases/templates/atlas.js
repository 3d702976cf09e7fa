"use strict";
// What all pages of an atlas share: data that scripts bring, the address, numbers, tiles.
const vitalAtlas = (() => {
  const known = new Map(), waiting = new Map();
  const KEPT = 12; // shards of details that are kept: whoever walks through thousands of units needs no more
  const shards = [];
  const add = (key, value) => known.set(key, value);
  // The value of data/<key>.js. A page from disk may load scripts and fetch nothing.
  const load = (key) => {
    if (!waiting.has(key)) waiting.set(key, new Promise((resolve, reject) => {
      const script = document.createElement("script");
      script.src = `data/${key}.js`;
      script.onload = () => { script.remove(); resolve(known.get(key)); };
      script.onerror = () => { waiting.delete(key); reject(new Error(`data/${key}.js cannot be loaded`)); };
      document.head.append(script);
    }));
    return waiting.get(key);
  };
  const details = async (entrance, layer, unit) => {
    const key = `${layer.folder}/${Math.floor(unit / entrance.shard)}`;
    const found = await load(key);
    if (!shards.includes(key)) shards.push(key);
    if (shards.length > KEPT) { const old = shards.shift(); known.delete(old); waiting.delete(old); }
    return found[unit];
  };
  // All units of a layer, in columns: numbers, names, classes, status, made, measures, x, y; and where each number stands.
  const units = async (layer, wanted = ["names", "measures"]) => {
    const parts = await Promise.all(layer.parts.map(async (part) => Object.assign({}, ...await Promise.all(wanted.map((kind) => load(`${layer.folder}/${kind}-${part}`))))));
    const joined = (key) => parts.flatMap((part) => typeof part[key] === "string" ? [...part[key]] : part[key] ?? []);
    const found = { units: joined("units"), names: joined("names"), classes: joined("classes"), status: joined("status"), made: joined("made").map(Number), x: joined("map_x"), y: joined("map_y"), measures: {} };
    for (const key of Object.keys(parts[0]?.measures ?? {})) found.measures[key] = parts.flatMap((part) => part.measures[key] ?? part.units.map(() => null));
    found.place = new Map(found.units.map((unit, place) => [unit, place]));
    return found;
  };

  // Addresses: page.html#layer/unit?sort=clarity&find=dog
  const decoded = (text) => { try { return decodeURIComponent(text); } catch { return text; } };
  const address = () => {
    const [path, query = ""] = location.hash.slice(1).split("?"), [layer = "", unit] = path.split("/").map(decoded);
    return { layer, unit: unit === undefined || !/^\d+$/.test(unit) ? null : Number(unit), ...Object.fromEntries(new URLSearchParams(query)) };
  };
  const hash = (layer, unit, options = {}) => {
    const query = new URLSearchParams(Object.entries(options).filter(([, value]) => value)).toString();
    return `#${encodeURIComponent(layer)}${unit === null ? "" : `/${unit}`}${query ? `?${query}` : ""}`;
  };
  const layerLink = (layer, options) => `layer.html${hash(layer, null, options)}`;
  const unitLink = (layer, unit, options) => `unit.html${hash(layer, unit, options)}`;
  // What the address says of the order, which goes with the reader from a layer to its units and back.
  const carried = ({ sort = "", find = "" }) => ({ sort, find });

  const make = (tag, properties = {}, ...children) => {
    const node = Object.assign(document.createElement(tag), properties);
    node.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== ""));
    return node;
  };
  const SVG = "http://www.w3.org/2000/svg";
  const draw = (tag, attributes = {}, ...children) => {
    const node = document.createElementNS(SVG, tag);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    node.append(...children);
    return node;
  };
  // Three digits, a true minus, a dash for none.
  const number = (value) => {
    if (value === null || value === undefined) return "–";
    const size = Math.abs(value);
    const text = Number.isInteger(value) || (size >= 1000 && size < 1e7) ? String(Math.round(value)) : size >= 1e-3 && size < 1e7 ? value.toPrecision(3) : value.toExponential(1);
    return (text.includes(".") ? text : text.replace(/\B(?=(\d{3})+$)/g, "\u202f")).replace("-", "−");
  };
  const percent = (share) => share === null || share === undefined ? "–" : `${100 * share < 1 && share > 0 ? (100 * share).toPrecision(2) : Math.round(100 * share)}\u00a0%`;
  const count = (many, one) => `${number(many)} ${many === 1 ? one : /(s|x|ch)$/.test(one) ? `${one}es` : `${one}s`}`;
  const shape = (layer) => layer.height * layer.width > 1 ? `${layer.height} × ${layer.width} map` : "no map";

  // The order of a layer's units: places in the columns. sort is a measure, with a minus for the lowest first.
  const ordered = (layer, found, { sort = "", find = "" }) => {
    const words = find.trim().toLowerCase(), status = { d: "", m: "without picture", f: "failed" };
    const fits = (place) => !words || String(found.units[place]) === words || `${layer.layer}:${found.units[place]}`.toLowerCase() === words
      || (!/^\d+$/.test(words) && [found.names[place], ...found.classes[place], status[found.status[place]]].some((text) => text && text.toLowerCase().includes(words)));
    const places = found.units.map((unit, place) => place).filter(fits);
    const values = found.measures[sort.replace(/^-/, "")], sign = sort.startsWith("-") ? 1 : -1;
    if (!values) return places;
    const height = (place) => values[place] === null ? Infinity : sign * values[place];
    return places.sort((a, b) => height(a) - height(b) || a - b);
  };

  // Thumbnails: bit 1 is a picture's, bit 2 those of the strongest images.
  const thumbnail = (layer, unit, made, images = false) => {
    const which = made & (images ? 2 : 1) || made;
    return made ? `thumbnails/${layer.folder}/${unit}${which & 1 ? "" : "_images"}.webp` : null;
  };
  const blank = (status) => make("span", { className: `blank ${status === "f" ? "failed" : ""}` }, status === "f" ? "failed" : "not made yet");
  // A link to a unit: its picture, what it is called, and a line of text.
  const tile = (layer, unit, { made, name, status, text, title, options, images }) => {
    const src = layer ? thumbnail(layer, unit, made, images) : null;
    const picture = src ? make("img", { src, alt: "", width: 192, height: 192, decoding: "async" }) : blank(status);
    const caption = make("span", { className: "caption" }, make("b", {}, title ?? String(unit)), name ? make("span", { className: "name" }, name) : null, text ? make("span", { className: "value" }, text) : null);
    return make("a", { className: `tile ${status === "f" ? "is-failed" : ""}`, href: unitLink(layer ? layer.layer : "", unit, options), title: name || "" }, picture, caption);
  };
  // Something went wrong, or is not there: said on the page.
  const tell = (...text) => {
    document.querySelector("main").replaceChildren(make("p", { className: "note" }, ...text));
    addEventListener("hashchange", () => location.reload()); // the page's parts are gone
  };
  // Runs a page's first drawing and each that follows a change of the address; an error is told.
  const start = (show) => {
    const run = () => Promise.resolve(show()).then(() => performance.mark("shown")).catch((error) => { tell(`This page cannot be shown: ${error.message}. Is the folder of the atlas whole?`); });
    addEventListener("hashchange", run);
    return run();
  };
  return { add, load, details, units, address, hash, layerLink, unitLink, carried, make, draw, number, percent, count, shape, ordered, thumbnail, tile, tell, start };
})();

"use strict";
// The dialog of one picture, the same on all pages: arrow keys, Escape, the masked picture, a download.
// neighbour(key, across, down) returns the slide beside that of a key, or null. A slide has key, src, alt and title. It
// may have fallback, masked, words, facts [[title, name, value]], real, realWords, file, wide, nodes, and later(), which
// resolves to further nodes. names are the buttons' nouns for a step across and, where there is one, down.
const pictureDialog = (zoom, neighbour, names = ["picture"]) => {
  const make = (tag, properties = {}, ...children) => {
    const node = Object.assign(document.createElement(tag), properties);
    node.append(...children.filter((child) => child !== null && child !== undefined));
    return node;
  };
  let slide = null, masked = false;
  const steps = [];
  const step = (across, down) => {
    const next = slide && neighbour(slide.key, across, down);
    if (next) show(next);
  };
  const button = (text, act, properties = {}) => {
    const node = make("button", { type: "button", ...properties }, text);
    node.addEventListener("click", act);
    return node;
  };
  const stepper = (text, across, down) => {
    const node = button(text, () => step(across, down));
    steps.push([node, across, down]);
    return node;
  };
  const image = make("img", { className: "large" }), flip = button("masked", () => { masked = !masked; paint(); }), save = make("a");
  const bar = make("div", { className: "bar" }, ...names.flatMap((name, place) => [
    stepper(`‹ ${name}`, place ? 0 : -1, place ? -1 : 0), stepper(`${name} ›`, place ? 0 : 1, place ? 1 : 0)]),
    flip, save, button("close", () => zoom.close(), { className: "close" }));
  const spread = make("div", { className: "spread" });
  zoom.replaceChildren(bar, spread);
  const paint = () => {
    const src = masked && slide.masked ? slide.masked : slide.src;
    image.onerror = () => { image.onerror = null; if (slide.fallback) image.src = slide.fallback; };
    image.src = src;
    image.alt = slide.alt;
    flip.hidden = !slide.masked;
    flip.setAttribute("aria-pressed", masked);
    const kind = (/^data:image\/(\w+)/.exec(src) || /\.(\w+)$/.exec(src) || [])[1] || "png";
    save.href = src;
    save.download = `${slide.file || "picture"}${masked && slide.masked ? "_masked" : ""}.${kind}`;
    save.textContent = `download ${kind === "jpg" ? "JPEG" : kind.toUpperCase()}`;
  };
  const facts = (rows) => make("table", {}, ...rows.map(([name, own, value]) =>
    make("tr", {}, make("th", { scope: "row" }, name, own ? " " : null, own ? make("code", {}, own) : null), make("td", {}, value))));
  const show = async (next) => {
    slide = next;
    const left = make("div", {}, image), right = make("div", {}, make("h3", {}, slide.title));
    if (slide.real) left.append(make("img", { className: "real", src: slide.real, alt: `Reference images of ${slide.title}` }), make("p", {}, slide.realWords || "reference images"));
    if (slide.words) right.append(make("p", {}, slide.words));
    if (slide.facts && slide.facts.length) right.append(facts(slide.facts));
    right.append(...(slide.nodes || []));
    spread.classList.toggle("wide", Boolean(slide.wide));
    spread.replaceChildren(...(slide.wide ? [right, left] : [left, right]));
    paint();
    for (const [node, across, down] of steps) node.setAttribute("aria-disabled", !neighbour(slide.key, across, down));
    if (!zoom.open) zoom.showModal();
    zoom.scrollTop = 0;
    const more = slide.later ? await slide.later() : [];
    if (slide === next) left.append(...more);
  };
  zoom.addEventListener("click", (event) => { if (event.target === zoom) zoom.close(); });
  zoom.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (!move || (!move[0] && names.length < 2)) return;
    event.preventDefault();
    step(...move);
  });
  return { show, make, facts };
};
// A picture on the page opens by mouse and by keyboard.
const opens = (image, act) => {
  image.tabIndex = 0;
  image.setAttribute("role", "button");
  image.style.cursor = "zoom-in";
  image.addEventListener("click", act);
  image.addEventListener("keydown", (event) => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); act(); } });
};

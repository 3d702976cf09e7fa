"use strict";
// A grid of thousands of tiles, of which only those near the screen are made.
// items: what tiles are of. tile(item) makes one; every row is as high as the first tile. The grid's list keeps its height.
const virtualGrid = (list, tile) => {
  const AHEAD = 2, LEAST = 8; // rows made above and below the screen; rows assumed when printing
  let items = [], columns = 1, height = 0, shown = [0, 0];
  const made = new Map();
  const measure = () => {
    if (!items.length) return;
    const probe = list.firstElementChild ?? list.appendChild(cell(0));
    const style = getComputedStyle(list);
    columns = Math.max(1, style.gridTemplateColumns.split(" ").length);
    height = probe.getBoundingClientRect().height + parseFloat(style.rowGap || 0);
  };
  const cell = (place) => {
    if (!made.has(place)) {
      const node = document.createElement("li");
      node.setAttribute("aria-setsize", items.length);
      node.setAttribute("aria-posinset", place + 1);
      node.append(tile(items[place]));
      made.set(place, node);
    }
    return made.get(place);
  };
  const paint = (all = false) => {
    if (!height || !list.checkVisibility()) return;
    const rows = Math.ceil(items.length / columns), top = -list.getBoundingClientRect().top;
    const first = all ? 0 : Math.min(Math.max(0, Math.floor(top / height) - AHEAD), Math.max(0, rows - LEAST));
    const last = all ? rows : Math.min(rows, Math.ceil((top + innerHeight) / height) + AHEAD);
    const from = first * columns, to = Math.max(from, Math.min(items.length, last * columns));
    if (from === shown[0] && to === shown[1]) return;
    shown = [from, to];
    for (const [place, node] of made) if (place < from || place >= to) { node.remove(); made.delete(place); }
    let before = null;
    for (let place = to - 1; place >= from; place -= 1) {
      const node = cell(place);
      if (!node.parentNode || node.nextSibling !== before) list.insertBefore(node, before);
      before = node;
    }
    list.style.paddingTop = `${first * height}px`;
    list.style.paddingBottom = `${Math.max(0, rows - last) * height}px`;
  };
  const lay = () => { shown = [0, 0]; measure(); paint(); };
  const set = (next) => {
    items = next;
    made.clear();
    list.replaceChildren();
    list.style.padding = "0";
    lay();
  };
  addEventListener("scroll", () => paint(), { passive: true });
  new ResizeObserver(() => { const wide = list.clientWidth; if (wide !== lay.width) { lay.width = wide; lay(); } }).observe(list);
  addEventListener("beforeprint", () => { if (items.length <= 600) paint(true); });
  return { set, lay, reveal: (place) => scrollTo({ top: scrollY + list.getBoundingClientRect().top + Math.floor(place / columns) * height - innerHeight / 3 }) };
};

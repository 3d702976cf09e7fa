"use strict";
// A map of units: near ones are alike. Tiles stand where there is room, dots elsewhere; zooming in makes room.
// unitMap(canvas, {label, open}) -> {set({points: [{x, y, key, label, colour}], sprite}), draw}
const unitMap = (canvas, { announce, open }) => {
  const MARGIN = 36, LEAST = 22, MOST = 96, FURTHEST = 40, DOT = 3.5; // px; zoom
  const pen = canvas.getContext("2d"), sprites = new Map();
  let points = [], view = { x: 0.5, y: 0.5, zoom: 1 }, chosen = -1, sprite = () => null, frame = 0, drawn = [];
  const dragging = new Map();
  const size = () => ({ width: canvas.clientWidth, height: canvas.clientHeight });
  const scale = () => { const { width, height } = size(); return { across: (width - 2 * MARGIN) * view.zoom, down: (height - 2 * MARGIN) * view.zoom, width, height }; };
  const onScreen = (point) => { const to = scale(); return [to.width / 2 + (point.x - view.x) * to.across, to.height / 2 + (point.y - view.y) * to.down]; };
  const ask = () => { if (!frame) frame = requestAnimationFrame(() => { frame = 0; draw(); }); };
  const image = (src) => {
    if (!sprites.has(src)) {
      const found = new Image();
      found.onload = ask;
      found.src = src;
      sprites.set(src, found);
    }
    const found = sprites.get(src);
    return found.complete && found.naturalWidth ? found : null;
  };
  const side = () => { // of a tile: as large as there is room for at this zoom
    const { width, height } = size();
    return Math.min(MOST, Math.max(LEAST, 0.62 * Math.sqrt(width * height / Math.max(1, points.length)) * view.zoom ** 0.8));
  };
  const draw = () => {
    const { width, height } = size(), ratio = devicePixelRatio || 1, tile = side(), half = tile / 2, taken = new Map();
    if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) { canvas.width = Math.round(width * ratio); canvas.height = Math.round(height * ratio); }
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, width, height);
    pen.imageSmoothingQuality = "high";
    const near = (x, y) => {
      const column = Math.floor(x / tile), row = Math.floor(y / tile);
      for (let i = column - 1; i <= column + 1; i += 1) for (let j = row - 1; j <= row + 1; j += 1)
        for (const [a, b] of taken.get(`${i},${j}`) ?? []) if (Math.abs(a - x) < tile + 2 && Math.abs(b - y) < tile + 2) return true;
      return false;
    };
    drawn = [];
    const later = [];
    points.forEach((point, place) => {
      const [x, y] = onScreen(point);
      if (x < -half || y < -half || x > width + half || y > height + half) return;
      const found = sprite(point), cell = `${Math.floor(x / tile)},${Math.floor(y / tile)}`;
      if (found && !near(x, y)) {
        taken.set(cell, [...(taken.get(cell) ?? []), [x, y]]);
        later.push([point, place, x, y, found]);
      } else {
        pen.fillStyle = point.colour;
        pen.beginPath();
        pen.arc(x, y, DOT, 0, 7);
        pen.fill();
        drawn.push([place, x, y, DOT + 2]);
      }
    });
    for (const [point, place, x, y, found] of later) {
      const sheet = image(found.src);
      pen.fillStyle = point.colour;
      pen.fillRect(x - half - 2, y - half - 2, tile + 4, tile + 4);
      if (sheet) pen.drawImage(sheet, found.left, found.top, found.side, found.side, x - half, y - half, tile, tile);
      drawn.push([place, x, y, half + 2]);
    }
    if (points[chosen]) mark(points[chosen], tile);
  };
  const mark = (point, tile) => {
    const [x, y] = onScreen(point), large = Math.max(tile, 56), half = large / 2, found = sprite(point), sheet = found && image(found.src);
    const style = getComputedStyle(canvas);
    if (sheet) pen.drawImage(sheet, found.left, found.top, found.side, found.side, x - half, y - half, large, large);
    pen.lineWidth = 3;
    pen.strokeStyle = style.getPropertyValue("--focus");
    pen.strokeRect(x - half - 1.5, y - half - 1.5, large + 3, large + 3);
  };
  const at = (x, y) => drawn.findLast(([, a, b, reach]) => Math.abs(a - x) <= reach && Math.abs(b - y) <= reach)?.[0] ?? -1;
  const choose = (place) => {
    if (place === chosen) return;
    chosen = place;
    announce(points[place] ?? null);
    ask();
  };
  const zoom = (by, x = size().width / 2, y = size().height / 2) => {
    const to = scale(), next = Math.min(FURTHEST, Math.max(1, view.zoom * by)), held = next / view.zoom;
    view.x += (x - to.width / 2) / to.across * (1 - 1 / held);
    view.y += (y - to.height / 2) / to.down * (1 - 1 / held);
    view.zoom = next;
    settle();
  };
  const settle = () => {
    if (view.zoom === 1) { view.x = 0.5; view.y = 0.5; }
    view.x = Math.min(1, Math.max(0, view.x));
    view.y = Math.min(1, Math.max(0, view.y));
    ask();
  };
  const place = (event) => { const box = canvas.getBoundingClientRect(); return [event.clientX - box.left, event.clientY - box.top]; };
  let moved = 0;
  canvas.addEventListener("wheel", (event) => {
    if (!event.ctrlKey && view.zoom === 1 && event.deltaY > 0) return; // the page scrolls on
    event.preventDefault();
    zoom(Math.exp(-event.deltaY * 0.0022), ...place(event));
  }, { passive: false });
  canvas.addEventListener("pointerdown", (event) => { canvas.setPointerCapture(event.pointerId); dragging.set(event.pointerId, place(event)); moved = dragging.size > 1 ? Infinity : 0; });
  canvas.addEventListener("pointermove", (event) => {
    const [x, y] = place(event), last = dragging.get(event.pointerId);
    if (!last) { const found = at(x, y); canvas.style.cursor = found < 0 ? "grab" : "pointer"; choose(found); return; }
    const to = scale(), others = [...dragging].filter(([id]) => id !== event.pointerId).map(([, where]) => where);
    moved += Math.hypot(x - last[0], y - last[1]);
    if (others.length) { // two fingers: the distance between them zooms
      const [[a, b]] = others;
      zoom(Math.hypot(x - a, y - b) / (Math.hypot(last[0] - a, last[1] - b) || 1), (x + a) / 2, (y + b) / 2);
    } else { view.x -= (x - last[0]) / to.across; view.y -= (y - last[1]) / to.down; settle(); }
    dragging.set(event.pointerId, [x, y]);
  });
  const end = (event) => {
    if (!dragging.delete(event.pointerId) || event.type === "pointercancel" || moved > 5) return;
    const found = at(...place(event));
    if (found >= 0) open(points[found]);
  };
  for (const kind of ["pointerup", "pointercancel"]) canvas.addEventListener(kind, end);
  canvas.addEventListener("pointerleave", () => { if (document.activeElement !== canvas) choose(-1); });
  // By keyboard: arrows go to the nearest unit in their direction, Enter opens it, + and - zoom, 0 shows all.
  canvas.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (event.ctrlKey || event.metaKey || event.altKey || !(step || ["Enter", "+", "-", "=", "0"].includes(event.key))) return;
    event.preventDefault();
    event.stopPropagation();
    if (event.key === "Enter") { if (points[chosen]) open(points[chosen]); } else if (event.key === "0") reset(); else if (!step) zoom(event.key === "-" ? 1 / 1.4 : 1.4); else walk(step);
  });
  const walk = ([across, down]) => {
    const { width, height } = size(), [x, y] = points[chosen] ? onScreen(points[chosen]) : [width / 2, height / 2];
    let best = -1, least = Infinity;
    points.forEach((point, number) => {
      const [a, b] = onScreen(point), ahead = (a - x) * across + (b - y) * down, aside = Math.abs((a - x) * down) + Math.abs((b - y) * across);
      if (number !== chosen && ahead > 0.5 && ahead + 2.5 * aside < least) { best = number; least = ahead + 2.5 * aside; }
    });
    if (best < 0) return;
    const [a, b] = onScreen(points[best]);
    if (a < MARGIN || b < MARGIN || a > width - MARGIN || b > height - MARGIN) { view.x = points[best].x; view.y = points[best].y; settle(); }
    choose(best);
  };
  const reset = () => { view = { x: 0.5, y: 0.5, zoom: 1 }; ask(); };
  new ResizeObserver(ask).observe(canvas);
  return { set: (given) => { ({ points, sprite } = given); chosen = -1; ask(); }, draw, zoom, reset, where: (key) => { const found = points.find((point) => point.key === key); return found ? onScreen(found) : null; } };
};

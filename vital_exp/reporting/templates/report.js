(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const field = (id) => document.getElementById(id);
  const CHUNK = 30; // rows made at a time; the next ones when the reader comes near the end
  const make = (tag, properties = {}, ...children) => {
    const node = Object.assign(document.createElement(tag), properties);
    node.append(...children);
    return node;
  };
  // Pictures by network, seed, method and target.
  const place = (model, seed, method, target) => `${model}/${seed}/${method}/${target}`;
  const pictures = new Map();
  for (const one of data.pictures) {
    const run = data.runs[one.run];
    pictures.set(place(run.model, run.seed, run.method, one.target), one);
  }
  const state = { hidden: new Set(), by: null, down: true, rows: [], made: 0 };
  const metric = () => data.metrics[field("metric").value];
  const valueOf = (one) => (one && one.values ? one.values[field("metric").value] : null);
  const sign = () => (metric() && metric().better === -1 ? 1 : -1); // best first
  const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
  const shortly = (value) => {
    if (value === null || value === undefined) return "–";
    if (value === 0 || Number.isInteger(value)) return String(value);
    const size = Math.abs(value);
    return (size >= 1000 ? value.toFixed(0) : size >= 0.001 ? String(Number(value.toPrecision(3))) : value.toExponential(1)).replace("-", "−");
  };
  const isVerdict = () => metric() && /top[15]/.test(metric().name);
  const shown = () => data.methods.map((_, index) => index).filter((index) => has(index) && !state.hidden.has(index));
  const has = (method) => data.runs.some((run) => run.model === Number(field("model").value) && run.method === method);
  const at = (method, target) => pictures.get(place(Number(field("model").value), Number(field("seed").value), method, target));

  const options = (id, names) => field(id).append(...names.map((name, index) => new Option(name, index)));
  options("model", data.models);
  options("metric", data.metrics.map((one) => one.title + (one.better === 1 ? " ↑" : one.better === -1 ? " ↓" : "")));
  field("metric").value = data.metric;
  field("model-label").hidden = data.models.length < 2;

  const fillSeeds = () => {
    const model = Number(field("model").value), before = field("seed").value;
    const seeds = [...new Set(data.runs.filter((run) => run.model === model).map((run) => run.seed))].sort((a, b) => a - b);
    field("seed").replaceChildren(...seeds.map((seed) => new Option(seed, seed)));
    if (seeds.includes(Number(before)) && before !== "") field("seed").value = before;
    field("seed-label").hidden = seeds.length < 2;
  };
  const fillMethods = () => {
    field("methods").replaceChildren(...data.methods.map((name, index) => {
      const chip = make("button", { type: "button", className: "chip", hidden: !has(index) }, make("i"), name);
      chip.firstChild.style.background = data.colours[index];
      chip.setAttribute("aria-pressed", !state.hidden.has(index));
      chip.addEventListener("click", () => {
        if (!state.hidden.delete(index)) state.hidden.add(index);
        chip.setAttribute("aria-pressed", !state.hidden.has(index));
        arrange();
      });
      return chip;
    }));
  };

  const keyOf = (target) => {
    const values = shown().map((method) => valueOf(at(method, target))).filter((value) => value !== null && value !== undefined);
    if (state.by !== null) return valueOf(at(state.by, target)) ?? null;
    if (!values.length) return null;
    return field("order").value === "spread" ? Math.max(...values) - Math.min(...values) : mean(values);
  };
  const arranged = () => {
    const words = field("find").value.trim().toLowerCase(), order = field("order").value;
    const rows = data.targets.map((_, index) => index).filter((target) => {
      const text = `${data.targets[target].label} ${data.targets[target].name}`.toLowerCase();
      return text.includes(words) && shown().some((method) => at(method, target));
    });
    if (order === "name" && state.by === null)
      return rows.sort((a, b) => data.targets[a].label.localeCompare(data.targets[b].label));
    if (!order && state.by === null) return rows;
    const keys = new Map(rows.map((target) => [target, keyOf(target)]));
    const turn = state.by !== null ? (state.down ? sign() : -sign()) : order === "worst" ? -sign() : order === "spread" ? -1 : sign();
    return rows.sort((a, b) => (keys.get(a) === null) - (keys.get(b) === null) || turn * (keys.get(a) - keys.get(b)) || a - b);
  };

  const header = () => {
    const cells = shown().map((method) => {
      const values = state.rows.map((target) => valueOf(at(method, target))).filter((value) => value !== null && value !== undefined);
      const button = make("button", { type: "button", title: "sort by this method" }, data.methods[method]);
      button.dataset.mark = state.by === method ? (state.down ? " ↓" : " ↑") : "";
      button.dataset.method = method;
      button.addEventListener("click", () => {
        [state.down, state.by] = [state.by === method ? !state.down : true, state.by === method && !state.down ? null : method];
        arrange();
      });
      return make("div", {}, button, make("span", { className: "mean" }, values.length ? `mean ${shortly(mean(values))}` : ""));
    });
    field("head").replaceChildren(make("div", { className: "mean" }, metric() ? metric().title : ""), ...cells);
  };
  const image = (src, alt, properties = {}) => make("img", { loading: "lazy", decoding: "async", src, alt, ...properties });
  const about = (target) => {
    const known = data.targets[target], strip = (data.references[field("model").value] || {})[target];
    const node = make("div", { className: "about" }, make("b", {}, known.label), make("code", {}, known.name));
    if (strip) {
      const [src, tiles] = strip, refs = make("div", { className: "refs" });
      refs.append(image(src, `Reference images of ${known.label}`, { style: "object-position: left" }));
      if (tiles > 3) refs.append(image(src, "", { style: "object-position: right" }));
      if (tiles < 3) refs.firstChild.style.aspectRatio = tiles;
      node.append(refs, make("small", {}, "reference images"));
    }
    return node;
  };
  const scored = (one) => {
    const value = valueOf(one), node = make("span", { className: "score" });
    if (isVerdict() && value !== null) {
      node.classList.add(value >= 0.5 ? "yes" : "no");
      node.textContent = value >= 0.5 ? "✓ recognised" : "✗ not recognised";
    } else node.textContent = metric() ? shortly(value) : "";
    return node;
  };
  const cell = (method, target) => {
    const one = at(method, target);
    if (!one) return make("div", { className: "cell" }, make("div", { className: "blank" }, "not made"));
    if (one.error) return make("div", { className: "cell" }, make("div", { className: "blank failed", title: one.error }, `failed: ${one.error}`));
    if (!one.thumb) return make("div", { className: "cell" }, make("div", { className: "blank" }, "the picture is missing"));
    const label = data.targets[target].label;
    const button = make("button", { type: "button", className: "cell" }, image(one.thumb, `${label} by ${data.methods[method]}`), scored(one));
    button.addEventListener("click", () => open(method, target));
    return button;
  };
  const lengthen = () => {
    const next = state.rows.slice(state.made, state.made + CHUNK);
    state.made += next.length;
    field("rows").append(...next.map((target) => make("div", { className: "line target" }, about(target), ...shown().map((method) => cell(method, target)))));
    field("end").textContent = state.rows.length ? (state.made < state.rows.length ? "more below" : "") : "no target matches";
    field("end").hidden = !field("end").textContent;
  };
  const arrange = () => {
    state.rows = arranged();
    state.made = 0;
    field("wall").style.setProperty("--columns", shown().length);
    field("rows").replaceChildren();
    header();
    lengthen();
    field("shown").textContent = `${state.rows.length} of ${data.targets.length} targets`;
  };
  new IntersectionObserver((entries) => { if (entries.some((entry) => entry.isIntersecting) && state.made < state.rows.length) lengthen(); }, { rootMargin: "1500px" }).observe(field("end"));

  window.addEventListener("beforeprint", () => { // paper needs all rows at once
    while (state.made < state.rows.length) lengthen();
    for (const one of document.querySelectorAll("img[loading=lazy]")) one.loading = "eager";
  });

  // The dialog of one picture. Curves and configurations are in scripts beside the page, loaded at the first click.
  const zoom = field("zoom"), details = new Map();
  window.vitalDetails = (name, content) => details.get(name).resolve(content);
  const detailsOf = (name) => {
    if (!details.has(name)) {
      const entry = {};
      entry.promise = new Promise((resolve) => { entry.resolve = resolve; });
      details.set(name, entry);
      const script = make("script", { src: `details/${name}.js` });
      script.addEventListener("error", () => entry.resolve(null));
      document.head.append(script);
    }
    return details.get(name).promise;
  };
  const values = (one) => data.metrics.map((known, index) => [known.title, known.name, one.values ? one.values[index] : null])
    .filter(([, , value]) => value !== null && value !== undefined)
    .map(([title, name, value]) => [title, name, /top[15]/.test(name) && Number.isInteger(value) ? (value ? "yes" : "no") : shortly(value)]);
  const legend = (terms) => make("ul", { className: "legend" }, ...terms.map(([name, colour, note]) => {
    const item = make("li", {}, make("i"), note ? `${name} (${note})` : name);
    item.firstChild.hidden = !colour;
    item.firstChild.style.background = colour === "currentColor" ? "var(--ink)" : colour;
    return item;
  }));
  const more = async (one, run, name) => {
    const found = await detailsOf(one.details), own = found && found.targets[name], nodes = [];
    if (own && own.chart) {
      const chart = make("div");
      chart.innerHTML = own.chart; // SVG of vital_exp, which escapes all text from files
      nodes.push(chart, legend(own.terms));
    }
    if (found && found.config) nodes.push(make("details", {}, make("summary", {}, "configuration"), make("pre", {}, found.config)));
    return [...nodes, make("p", {}, make("a", { href: run.link }, "the run's own page"), ` (${run.folder})`)];
  };
  const slide = (method, target) => {
    const one = at(method, target), run = data.runs[one.run], known = data.targets[target];
    const strip = (data.references[run.model] || {})[target];
    return {
      key: [method, target], src: one.full, fallback: one.thumb, masked: one.masked, alt: `${known.label} by ${data.methods[method]}`,
      title: known.label, words: `${known.name} · ${data.models[run.model]} · ${data.methods[run.method]} · seed ${run.seed}`,
      facts: values(one), real: strip && strip[0], file: `${known.name}-${data.methods[method]}`, later: () => more(one, run, known.name),
    };
  };
  const neighbour = ([method, target], across, down) => {
    let methods = shown(), column = methods.indexOf(method), row = state.rows.indexOf(target);
    for (;;) {
      column += across; row += down;
      if (column < 0 || row < 0 || column >= methods.length || row >= state.rows.length) return null;
      const one = at(methods[column], state.rows[row]);
      if (one && one.thumb) return slide(methods[column], state.rows[row]);
    }
  };
  const dialog = pictureDialog(zoom, neighbour, ["method", "target"]);
  const open = (method, target) => dialog.show(slide(method, target));

  field("model").addEventListener("input", () => { state.by = null; fillSeeds(); fillMethods(); arrange(); });
  field("order").addEventListener("input", () => { state.by = null; arrange(); });
  for (const id of ["seed", "find", "metric"]) field(id).addEventListener("input", arrange);
  field("controls").addEventListener("submit", (event) => event.preventDefault());
  fillSeeds();
  fillMethods();
  arrange();
})();

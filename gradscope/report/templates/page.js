"use strict";
// Draws what is in view, filters everything, sorts tables, saves CSV. Names from outside reach the
// page as text only: through textContent, or escaped by the writer where plotly shows them.
(() => {
  const $ = (selector, root = document) => root.querySelector(selector);
  const $$ = (selector, root = document) => [...root.querySelectorAll(selector)];
  const json = id => JSON.parse(document.getElementById(id).textContent);
  const study = json("study");
  const root = document.documentElement;

  // ---- unpacking -------------------------------------------------------------------------------
  const bytesOf = base64 => {
    if (Uint8Array.fromBase64) return Uint8Array.fromBase64(base64);
    const text = atob(base64);
    const bytes = new Uint8Array(text.length);
    for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
    return bytes;
  };

  const unpack = async id => {
    const bytes = bytesOf(document.getElementById(id).textContent);
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(stream).text();
  };

  const floats = packed => {
    const flat = Array.from(new Float32Array(bytesOf(packed.bdata).buffer), v => Number.isNaN(v) ? null : v);
    if (!packed.shape) return flat;
    const [rows, columns] = String(packed.shape).split(",").map(Number);
    return Array.from({ length: rows }, (_, i) => flat.slice(i * columns, (i + 1) * columns));
  };

  const unpackTrace = (trace, names) => {
    for (const name of ["x", "y", "z"]) if (trace[name] && trace[name].bdata) trace[name] = floats(trace[name]);
    if (typeof trace.text === "number") trace.text = names[trace.text];
    return trace;
  };

  // ---- theme -----------------------------------------------------------------------------------
  const prefersDark = matchMedia("(prefers-color-scheme: dark)");
  let choice = "auto";
  const isDark = () => choice === "dark" || (choice === "auto" && prefersDark.matches);
  let tokens = new Map(); // read once per theme: each reading makes the browser lay out the page
  const token = name => {
    if (!tokens.has(name)) tokens.set(name, getComputedStyle(root).getPropertyValue(name).trim());
    return tokens.get(name);
  };

  const applyTheme = () => {
    root.dataset.theme = isDark() ? "dark" : "light";
    tokens = new Map();
    const button = $("#theme");
    $("span", button).textContent = choice;
    button.setAttribute("aria-label", `Colour scheme: ${choice === "auto" ? "as the system" : choice}`);
  };

  const themedLayout = layout => {
    const axis = { gridcolor: token("--grid"), zerolinecolor: token("--line"), linecolor: token("--line"), tickfont: { size: 11 } };
    const themed = {
      ...layout,
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { color: token("--ink"), size: 12, family: "system-ui, -apple-system, Segoe UI, Roboto, Noto Sans, sans-serif" },
      hoverlabel: { bgcolor: token("--raised"), bordercolor: token("--line"), font: { color: token("--ink"), size: 12 }, align: "left", namelength: -1 },
      hovermode: "closest", dragmode: "zoom",
    };
    for (const name of Object.keys(themed)) {
      if (/^[xy]axis\d*$/.test(name)) themed[name] = { ...axis, ...themed[name] };
    }
    themed.xaxis = { ...axis, ...themed.xaxis };
    themed.yaxis = { ...axis, ...themed.yaxis };
    return themed;
  };

  const themedTrace = trace => {
    const meta = trace.meta || {};
    const painted = { ...trace };
    if (meta.c !== undefined) {
      const colour = study.palette[isDark() ? "dark" : "light"][meta.c];
      if (trace.line) painted.line = { ...trace.line, color: colour };
      if (trace.marker) painted.marker = { ...trace.marker, color: colour };
      if (trace.error_x) painted.error_x = { ...trace.error_x, color: colour };
      if (trace.fill) painted.fillcolor = colour + "33";
    }
    if (trace.type === "heatmap") painted.showscale = false; // its scale stands above the panels
    if (meta.diverging) painted.colorscale = [[0, token("--c0")], [0.5, token("--middle")], [1, token("--c1")]];
    if (meta.shares) painted.colorscale = [[0, token("--share-0")], [1, token("--share-1")]];
    return painted;
  };

  // ---- filter ----------------------------------------------------------------------------------
  const off = study.factors.map(() => new Set());
  const offVerdicts = new Set();
  let shown = study.variants.map(() => true);
  let shownCells = study.cells.map(() => true);
  let filtered = false;

  const readFilter = () => {
    off.forEach(set => set.clear());
    offVerdicts.clear();
    for (const box of $$("#filters input")) {
      if (box.checked) continue;
      if (box.dataset.verdict !== undefined) offVerdicts.add(box.dataset.verdict);
      else off[+box.dataset.factor].add(+box.dataset.level);
    }
    filtered = offVerdicts.size > 0 || off.some(set => set.size > 0);
    shownCells = study.cells.map(cell =>
      !offVerdicts.has(cell.verdict || cell.status) &&
      study.variants[cell.v].levels.every((level, f) => !off[f].has(level)));
    shown = study.variants.map(() => false);
    study.cells.forEach((cell, i) => { if (shownCells[i]) shown[cell.v] = true; });
  };

  const applyFilter = () => {
    const start = performance.now();
    readFilter();
    for (const row of $$("tr[data-cell]")) row.hidden = !shownCells[+row.dataset.cell];
    for (const item of $$("tr[data-v]:not([data-cell]), li[data-v]")) item.hidden = !shown[+item.dataset.v];
    for (const figure of $$(".chart")) layPanels(figure);
    const note = $("#effects-filtered");
    if (note) note.hidden = !filtered;
    sayFilter();
    redrawAll();
    root.dataset.filterMs = String(performance.now() - start);
  };

  const sayFilter = () => {
    const state = $("#filter-state");
    if (!state) return;
    const n = shownCells.filter(Boolean).length;
    state.textContent = filtered ? `${n} of ${shownCells.length} ${study.noun}` : `all ${shownCells.length} ${study.noun}`;
    $("#filter-reset").hidden = !filtered;
  };

  const isNarrow = () => innerWidth <= 640;

  // Hide panels that the filter empties, and those beyond the number that a chart shows at once.
  const layPanels = figure => {
    const most = figure.dataset.all ? Infinity : isNarrow() ? 6 : +figure.dataset.most;
    let n = 0;
    for (const panel of $$(".panel", figure)) {
      const variants = panel.dataset.v ? panel.dataset.v.split(" ") : null;
      const wanted = variants ? variants.some(v => shown[+v]) : shown.some(Boolean);
      if (wanted) n += 1;
      panel.hidden = !wanted || n > most;
    }
    const more = $(".show-more", figure);
    more.hidden = n <= most;
    more.textContent = `Show all ${n}`;
    $(".empty", figure).hidden = n > 0;
  };

  // ---- drawing ---------------------------------------------------------------------------------
  const charts = new Map();
  const chartOf = key => {
    if (!charts.has(key)) charts.set(key, json(`chart-${key}`));
    return charts.get(key);
  };
  const keyOf = plot => plot.closest(".chart").dataset.chart;

  const panelOf = plot => {
    const chart = chartOf(keyOf(plot));
    const panel = chart.panels[+plot.dataset.panel];
    if (!panel.unpacked) {
      panel.data.forEach(trace => unpackTrace(trace, chart.names));
      panel.unpacked = true;
    }
    return { chart, panel };
  };

  // Of many lines at most so many, evenly chosen among those that the filter leaves.
  const thinned = (traces, most) => {
    const variants = [...new Set(traces.filter(t => t.meta && t.meta.v !== undefined).map(t => t.meta.v))];
    if (!most || variants.length <= most) return traces;
    const kept = new Set(Array.from({ length: most }, (_, i) => variants[Math.round(i * (variants.length - 1) / (most - 1))]));
    return traces.filter(t => !t.meta || t.meta.v === undefined || kept.has(t.meta.v));
  };

  const sliced = trace => {
    const meta = trace.meta;
    if (trace.type === "heatmap") {
      const kept = meta.rows.map((v, i) => i).filter(i => shown[meta.rows[i]]);
      const labels = kept.map(i => meta.labels[i]);
      return { ...trace, z: kept.map(i => trace.z[i]), y: kept.map((_, i) => i), text: labels.map(label => trace.z[0].map(() => label)) };
    }
    const order = meta.order.filter(v => shown[v]);
    const place = new Map(order.map((v, i) => [v, i]));
    const kept = meta.rows.map((v, i) => i).filter(i => shown[meta.rows[i]]);
    const bars = trace.error_x && { error_x: { ...trace.error_x, array: kept.map(i => trace.error_x.array[i]), arrayminus: kept.map(i => trace.error_x.arrayminus[i]) } };
    return { ...trace, ...bars, x: kept.map(i => trace.x[i]), y: kept.map(i => place.get(meta.rows[i])), text: kept.map(i => trace.text[i]) };
  };

  // Sums of the confusion counts of those variants of a pool that the filter leaves.
  const repooled = trace => {
    if (!filtered) return trace;
    const own = chartOf("confusion").panels.filter(p => shown[p.data[0].meta.v] && trace.meta.pool.includes(p.data[0].meta.v));
    const sums = trace.text.map((row, i) => row.map((_, j) => own.reduce((sum, p) => sum + p.data[0].text[i][j], 0)));
    const shares = sums.map(row => { const n = row.reduce((a, b) => a + b, 0); return row.map(v => n ? v / n : null); });
    return { ...trace, text: sums, z: shares };
  };

  // ---- names that fit ----------------------------------------------------------------------------
  const unescaped = text => text.replaceAll("&lt;", "<").replaceAll("&gt;", ">").replaceAll("&amp;", "&");
  const escaped = text => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
  const clippedMiddle = (text, most) => {
    const whole = unescaped(text);
    if (whole.length <= most) return text;
    const head = Math.floor((most - 1) / 2);
    return `${escaped(whole.slice(0, head))}…${escaped(whole.slice(head + 1 - most))}`;
  };

  // Broken at spaces and dots, else anywhere, so that a tooltip stays within its panel.
  const wrapped = (text, most) => {
    const lines = [""];
    for (const piece of unescaped(text).split(/(?<=[ .])/).flatMap(p => p.match(new RegExp(`.{1,${most}}`, "gsu")) || [])) {
      if (lines.at(-1) && (lines.at(-1) + piece).length > most) lines.push("");
      lines[lines.length - 1] += piece;
    }
    return lines.map(line => escaped(line.trim())).join("<br>");
  };
  const wrapping = (trace, most) => {
    const known = new Map();
    const wrap = text => {
      if (typeof text !== "string") return text;
      if (!known.has(text)) known.set(text, wrapped(text, most));
      return known.get(text);
    };
    const fitted = { ...trace };
    if (trace.name) fitted.name = wrap(trace.name);
    if (trace.customdata && trace.meta && trace.meta.effects) fitted.customdata = trace.customdata.map(wrap);
    if (Array.isArray(trace.text)) fitted.text = trace.text.map(row => Array.isArray(row) ? row.map(wrap) : wrap(row));
    return fitted;
  };

  // Sizes are kept: asking for one while drawing makes the browser lay out the page each time.
  const sizes = new Map();
  const sizeOf = plot => {
    if (!sizes.has(plot)) sizes.set(plot, [plot.clientWidth, plot.clientHeight]);
    return sizes.get(plot);
  };
  const isWide = plot => sizeOf(plot)[0] > 700;

  const rowLayout = (plot, panel, layout) => {
    const meta = panel.data[0].meta;
    const order = (meta.order || meta.rows);
    const kept = order.map((v, i) => i).filter(i => shown[order[i]]);
    const legible = kept.length <= 60;
    const wide = isWide(plot);
    const height = Math.max(7, Math.min(22, 720 / Math.max(kept.length, 1))) * kept.length;
    layout.height = Math.max(160, Math.min(900, height) + layout.margin.t + layout.margin.b + 10);
    plot.style.height = `${layout.height}px`;
    layout.yaxis = {
      ...layout.yaxis, automargin: true, range: [kept.length - 0.5, -0.5], autorange: false, ticks: "",
      showticklabels: legible, tickvals: kept.map((_, i) => i), showgrid: panel.data[0].type !== "heatmap",
      ticktext: kept.map(i => wide ? meta.labels[i] : meta.short[i]), tickfont: { size: kept.length > 40 || !wide ? 9 : 11 },
    };
    return layout;
  };

  const traceHeat = trace => trace.meta && trace.meta.per_row ? {
    ...trace,
    text: trace.text.map(name => trace.z[0].map(() => name)),
    customdata: trace.hovertemplate.includes("customdata") ? trace.z.map(row => row.map(v => v === null ? null : 10 ** v)) : undefined,
  } : trace;

  const drawing = plot => {
    const { chart, panel } = panelOf(plot);
    let layout = themedLayout(structuredClone(panel.layout));
    [layout.width, layout.height] = sizeOf(plot);
    let traces = panel.data;
    if (chart.options.effects) {
      traces = traces.map(recomputed);
      layout.height = Math.max(110, 26 * traces[0].y.length + 60);
      plot.style.height = `${layout.height}px`;
    }
    if (chart.options.rows) {
      const hidden = hiddenIn(keyOf(plot));
      traces = traces.filter(t => !(t.meta.k && hidden.has(`k:${t.meta.k}`))).map(sliced);
      layout = rowLayout(plot, panel, layout);
    } else {
      if (chart.lines) traces = thinned(traces.filter(t => isShown(t, plot)), chart.lines);
      if (chart.options.pooled) traces = traces.map(repooled);
      traces = traces.map(traceHeat).map((trace, i) => ({ ...trace, uid: `t${i}` }));
    }
    const width = sizeOf(plot)[0];
    const names = layout.yaxis.ticktext;
    if (names) layout.yaxis.ticktext = names.map(t => clippedMiddle(t, width < 480 ? (chart.options.rows ? 31 : 24) : Math.max(24, Math.floor(width / 16))));
    traces = traces.map(trace => wrapping(trace, Math.max(14, Math.min(40, Math.floor(width / 10)))));
    for (const shape of layout.shapes || []) shape.line.color = token("--soft");
    return [traces.map(themedTrace), layout];
  };

  // What the legend of a chart hides: "f:l" for a level of a factor, "k:name" for a kind of trace.
  const hiddenOf = new Map();
  const hiddenIn = key => {
    if (!hiddenOf.has(key)) hiddenOf.set(key, new Set());
    return hiddenOf.get(key);
  };

  const isShown = (trace, plot) => {
    const meta = trace.meta || {};
    const hidden = hiddenIn(keyOf(plot));
    if (meta.k && hidden.has(`k:${meta.k}`)) return false;
    if (meta.v === undefined) return true;
    return shown[meta.v] && !study.variants[meta.v].levels.some((l, f) => hidden.has(`${f}:${l}`));
  };

  // A filter hides lines without drawing anew, which takes plotly thirty times as long.
  const toggled = plot => {
    const { chart } = panelOf(plot);
    if (chart.lines || chart.options.rows || chart.options.effects || chart.options.pooled || !plot._fullData) return false;
    const groups = new Map($$(".scatterlayer > .trace", plot).map(node => [node, [...node.classList]]));
    for (const trace of plot._fullData) {
      const visible = isShown(trace, plot);
      trace.visible = visible; // or hovering would still find it
      for (const [node, classes] of groups) {
        if (classes.includes(`trace${trace.uid}`)) node.style.display = visible ? "" : "none";
      }
    }
    return true;
  };

  let themes = 0; // counts what makes every plot stale: a change of theme or width
  let state = 0; // counts filter and theme changes; a plot drawn at an older count is stale
  const draw = plot => {
    if (plot.dataset.state === String(state) || plot.closest("[hidden]")) return;
    plot.dataset.state = String(state);
    if (plot.dataset.themes === String(themes) && toggled(plot)) return;
    plot.dataset.themes = String(themes);
    const [traces, layout] = drawing(plot);
    Plotly.react(plot, traces, layout, { displayModeBar: false });
    toggled(plot);
  };

  const nearby = new Set();
  const watcher = new IntersectionObserver(entries => {
    for (const entry of entries) {
      if (entry.isIntersecting) nearby.add(entry.target); else nearby.delete(entry.target);
    }
    drawSoon();
  }, { rootMargin: "300px 0px" });

  // A few plots per frame, so that the page stays responsive while it scrolls.
  let scheduled = false;
  const drawSoon = () => {
    if (scheduled || !window.Plotly) return;
    scheduled = true;
    requestAnimationFrame(() => {
      scheduled = false;
      const until = performance.now() + 30;
      for (const plot of nearby) {
        draw(plot);
        if (performance.now() > until) { drawSoon(); break; }
      }
    });
  };

  const inView = plot => {
    const box = plot.getBoundingClientRect();
    return box.bottom > 0 && box.top < innerHeight;
  };

  const redrawAll = (all = false) => {
    state += 1;
    if (all) themes += 1;
    if (!window.Plotly) return;
    const until = performance.now() + 100; // what takes longer follows frame by frame
    for (const plot of [...nearby].filter(inView)) {
      if (performance.now() > until) break;
      draw(plot);
    }
    drawSoon();
  };

  // ---- legends, and what colour, dash and panels stand for ----------------------------------------
  const svgNode = (name, attributes) => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    return node;
  };
  const SHAPES = {
    circle: ["circle", { cx: 17, cy: 6, r: 4 }], "circle-open": ["circle", { cx: 17, cy: 6, r: 4, class: "open" }],
    square: ["rect", { x: 13, y: 2, width: 8, height: 8 }], diamond: ["path", { d: "M17 1l5 5-5 5-5-5z" }],
    "triangle-up": ["path", { d: "M17 1l5 9H12z" }], x: ["path", { d: "M13 2l8 8M21 2l-8 8", class: "stroke" }],
    cross: ["path", { d: "M17 1v10M12 6h10", class: "stroke" }],
  };
  const sign = key => {
    const svg = svgNode("svg", { class: `key c${key.colour >= 0 ? key.colour : "text"}`, viewBox: "0 0 34 12", width: 34, height: 12, "aria-hidden": "true" });
    if (key.dash) svg.append(svgNode("line", { x1: 1, y1: 6, x2: 33, y2: 6, class: `d-${key.dash}` }));
    if (SHAPES[key.symbol]) svg.append(svgNode(...SHAPES[key.symbol]));
    return svg;
  };
  const hideOf = key => key.hides.k !== undefined ? `k:${key.hides.k}` : `${key.hides.f}:${key.hides.l}`;

  const layLegend = figure => {
    const list = $(".legend", figure);
    if (!list) return;
    const hidden = hiddenIn(figure.dataset.chart);
    const own = study.legends[figure.dataset.chart] || [];
    const keys = regrouped() && chartOf(figure.dataset.chart).options.scheme
      ? [...schemeKeys(), ...own.filter(k => k.hides.k !== undefined)] : own;
    list.replaceChildren(...keys.map(key => {
      const item = document.createElement("li");
      const button = document.createElement("button");
      button.type = "button";
      button.className = "legend-key";
      button.dataset.hides = hideOf(key);
      button.setAttribute("aria-pressed", String(!hidden.has(hideOf(key))));
      button.append(sign(key), ` ${key.label}`);
      item.append(button);
      return item;
    }));
  };

  const toggleKey = button => {
    const figure = button.closest(".chart");
    const hidden = hiddenIn(figure.dataset.chart);
    if (!hidden.delete(button.dataset.hides)) hidden.add(button.dataset.hides);
    button.setAttribute("aria-pressed", String(!hidden.has(button.dataset.hides)));
    state += 1;
    for (const plot of $$(".plot", figure)) if (nearby.has(plot)) draw(plot);
  };

  const chosen = { ...study.scheme, panel: "rest" };
  const regrouped = () => chosen.colour !== study.scheme.colour || chosen.dash !== study.scheme.dash || chosen.panel !== "rest";
  const cycled = (list, level) => list[Math.max(level, 0) % list.length];
  const styleOf = v => {
    const levels = study.variants[v].levels;
    const level = chosen.colour >= 0 ? levels[chosen.colour] : 0;
    return { c: Math.max(level, 0) % study.palette.light.length, symbol: cycled(study.symbols, level), dash: cycled(study.dashes, chosen.dash >= 0 ? levels[chosen.dash] : 0) };
  };
  const schemeKeys = () => {
    const keys = [];
    const levelsOf = f => f >= 0 ? study.factors[f].levels.map((level, l) => [`${study.factors[f].name} ${level}`, l]) : [];
    for (const [label, l] of levelsOf(chosen.colour)) keys.push({ label, colour: l % study.palette.light.length, dash: "solid", symbol: cycled(study.symbols, l), hides: { f: chosen.colour, l } });
    if (chosen.dash !== chosen.colour) for (const [label, l] of levelsOf(chosen.dash)) keys.push({ label, colour: -1, dash: cycled(study.dashes, l), symbol: "", hides: { f: chosen.dash, l } });
    return keys;
  };

  const MOST_PANELS = 16;
  const panelFactors = () => {
    if (chosen.panel === "none") return [];
    if (chosen.panel !== "rest") return [+chosen.panel];
    const found = [];
    let panels = 1;
    study.factors.forEach((factor, f) => {
      if (f === chosen.colour || f === chosen.dash || panels * factor.levels.length > MOST_PANELS) return;
      panels *= factor.levels.length;
      found.push(f);
    });
    return found;
  };

  const restyled = trace => {
    const meta = trace.meta;
    if (!meta || meta.v === undefined || meta.c === undefined) return trace;
    const { c, symbol, dash } = styleOf(meta.v);
    const styled = { ...trace, meta: { ...meta, c } };
    if (meta.styled && trace.line) styled.line = { ...trace.line, dash };
    if (meta.styled && trace.marker) styled.marker = { ...trace.marker, symbol };
    return styled;
  };

  const regroup = figure => {
    const chart = chartOf(figure.dataset.chart);
    if (!chart.options.scheme) return;
    chart.drawn = chart.drawn || chart.panels;
    let panels = chart.drawn;
    if (regrouped()) {
      const by = panelFactors();
      const groups = new Map();
      for (const panel of chart.drawn) {
        for (const trace of panel.data) {
          const levels = study.variants[trace.meta.v].levels;
          const key = by.map(f => levels[f]).join();
          const title = by.map(f => `${study.factors[f].name} ${levels[f] < 0 ? "—" : study.factors[f].levels[levels[f]]}`).join(" · ");
          if (!groups.has(key)) groups.set(key, { title, data: [], layout: panel.layout });
          groups.get(key).data.push(restyled(unpackTrace(trace, chart.names)));
        }
      }
      panels = [...groups.values()];
    }
    chart.panels = panels;
    const place = $(".panels", figure);
    for (const plot of $$(".plot", place)) {
      watcher.unobserve(plot);
      nearby.delete(plot);
      sizes.delete(plot);
      if (window.Plotly) Plotly.purge(plot);
    }
    figure.classList.toggle("wide", panels.length === 1);
    place.className = `panels columns-${panels.length > 6 || panels.length === 4 ? 4 : Math.min(3, panels.length)}`;
    place.replaceChildren(...panels.map((panel, i) => {
      const node = document.createElement("div");
      node.className = "panel";
      node.dataset.v = [...new Set(panel.data.map(t => t.meta.v))].join(" ");
      if (panel.title) {
        const head = document.createElement("h4");
        head.textContent = panel.title;
        node.append(head);
      }
      const plot = document.createElement("div");
      plot.className = "plot";
      plot.dataset.panel = i;
      plot.setAttribute("role", "img");
      plot.setAttribute("aria-label", `${$("h3", figure).textContent}: ${panel.title || "all in one plot"}`);
      node.append(plot);
      return node;
    }));
    layPanels(figure);
    layLegend(figure);
    for (const plot of $$(".plot", place)) watcher.observe(plot);
  };

  const applyScheme = () => {
    const value = name => +$(`#by-${name}`).value;
    const panel = $("#by-panel").value;
    Object.assign(chosen, { colour: value("colour"), dash: value("dash"), panel });
    hiddenOf.clear();
    for (const figure of $$(".chart")) regroup(figure);
    state += 1;
    drawSoon();
  };

  // ---- figures to take along -----------------------------------------------------------------------
  const textNode = (text, x, y, size, more = {}) => {
    const node = svgNode("text", { x, y, "font-size": size, fill: token("--ink"), ...more });
    node.textContent = text;
    return node;
  };

  // One SVG of all panels as they stand on the page, with title, legend and scale.
  const composed = async figure => {
    const place = $(".panels", figure).getBoundingClientRect();
    const plots = $$(".plot", figure).filter(p => !p.closest("[hidden]"));
    const entries = $$(".legend-key[aria-pressed=true]", figure);
    const scale = $(".scale", figure);
    const root = svgNode("svg", { xmlns: "http://www.w3.org/2000/svg", "font-family": "system-ui, Segoe UI, Roboto, Noto Sans, sans-serif" });
    const ground = svgNode("rect", { width: "100%", height: "100%", fill: token("--paper") });
    root.append(ground, textNode($("h3", figure).textContent, 12, 24, 17, { "font-weight": 600 }));
    let [x, y] = [12, 46];
    for (const entry of entries) {
      const width = 44 + 7 * entry.textContent.length;
      if (x > 12 && x + width > place.width) [x, y] = [12, y + 20];
      const mark = $("svg", entry).cloneNode(true);
      const colour = getComputedStyle($("svg", entry)).color;
      for (const [key, v] of Object.entries({ x, y: y - 10, color: colour, stroke: colour, fill: colour, "stroke-width": 2 })) mark.setAttribute(key, v);
      for (const [i, line] of $$("line, .open, .stroke", mark).entries()) {
        const style = getComputedStyle($$("line, .open, .stroke", $("svg", entry))[i]);
        line.setAttribute("stroke-dasharray", style.strokeDasharray);
        line.setAttribute("fill", style.fill);
      }
      root.append(mark, textNode(entry.textContent.trim(), x + 40, y, 12));
      x += width;
    }
    if (scale) {
      const [low, high] = [$("span:first-child", scale).textContent, $("span:last-child", scale).textContent];
      const stops = getComputedStyle($(".ramp", scale)).backgroundImage.match(/rgba?\([^)]*\)/g) || [];
      const gradient = svgNode("linearGradient", { id: "ramp" });
      stops.forEach((stop, i) => gradient.append(svgNode("stop", { offset: i / (stops.length - 1), "stop-color": stop })));
      const at = 18 + 7 * low.length;
      root.append(gradient, textNode(low, 12, y, 12), svgNode("rect", { x: at, y: y - 10, width: 180, height: 11, fill: "url(#ramp)" }), textNode(high, at + 188, y, 12));
    }
    const top = entries.length || scale ? y + 16 : 36;
    let bottom = top;
    for (const plot of plots) {
      draw(plot);
      const box = plot.getBoundingClientRect();
      const url = await Plotly.toImage(plot, { format: "svg", width: Math.round(box.width), height: Math.round(box.height) });
      const panel = new DOMParser().parseFromString(decodeURIComponent(url.slice(url.indexOf(",") + 1)), "image/svg+xml").documentElement;
      const [left, over] = [box.left - place.left, box.top - place.top + top];
      panel.setAttribute("x", left);
      panel.setAttribute("y", over);
      root.append(document.importNode(panel, true));
      const head = $("h4", plot.parentNode);
      if (head) {
        const lines = wrapped(escaped(head.textContent), Math.floor(box.width / 7.2)).split("<br>").map(unescaped);
        lines.forEach((line, i) => root.append(textNode(line, left + 4, over - 6 - 15 * (lines.length - 1 - i), 12, { "font-weight": 600 })));
      }
      bottom = Math.max(bottom, over + box.height);
    }
    const [width, height] = [Math.ceil(place.width), Math.ceil(bottom + 8)];
    for (const [key, v] of Object.entries({ width, height, viewBox: `0 0 ${width} ${height}` })) root.setAttribute(key, v);
    return { text: new XMLSerializer().serializeToString(root), width, height };
  };

  const rastered = async ({ text, width, height }) => {
    const url = URL.createObjectURL(new Blob([text], { type: "image/svg+xml" }));
    try {
      const image = new Image();
      image.src = url;
      await image.decode();
      const canvas = document.createElement("canvas");
      [canvas.width, canvas.height] = [2 * width, 2 * height];
      canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
      return await new Promise(done => canvas.toBlob(done, "image/png"));
    } finally {
      URL.revokeObjectURL(url);
    }
  };

  const savePicture = async button => {
    if (!window.Plotly) return;
    const figure = button.closest(".chart");
    button.disabled = true;
    try {
      const picture = await composed(figure);
      const blob = button.dataset.format === "png" ? await rastered(picture) : new Blob([picture.text], { type: "image/svg+xml" });
      saveBlob(blob, `${figure.dataset.chart}.${button.dataset.format}`);
    } finally {
      button.disabled = false;
    }
  };

  const saveBlob = (blob, name) => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  };

  // ---- effects of what is shown: the same means as the study's, over the variants left -----------
  const outcomes = metric => {
    const found = new Map();
    study.cells.forEach((cell, i) => {
      if (!shownCells[i] || cell[metric] === null) return;
      const key = study.variants[cell.v].levels.join();
      if (!found.has(key)) found.set(key, { levels: study.variants[cell.v].levels, seeds: new Map() });
      found.get(key).seeds.set(cell.seed, cell[metric]);
    });
    return found;
  };

  const place = (name, level) => {
    const f = study.factors.findIndex(factor => factor.name === name);
    return [f, study.factors[f].levels.indexOf(level)];
  };

  const estimate = ([metric, factor, level, reference, by, byLevel, byReference], found) => {
    const [f, at] = place(factor, level);
    const from = place(factor, reference)[1];
    const [g, byAt] = by ? place(by, byLevel) : [-1, -1];
    const byFrom = by ? place(by, byReference)[1] : -1;
    const means = [];
    for (const { levels } of found.values()) {
      if (levels[f] !== at || (by && levels[g] !== byAt)) continue;
      const moved = (toF, toG) => levels.map((l, i) => i === f ? toF : i === g ? toG : l).join();
      const terms = by
        ? [[1, moved(at, byAt)], [-1, moved(from, byAt)], [-1, moved(at, byFrom)], [1, moved(from, byFrom)]]
        : [[1, moved(at, byAt)], [-1, moved(from, byAt)]];
      if (!terms.every(([, key]) => found.has(key))) continue;
      const maps = terms.map(([sign, key]) => [sign, found.get(key).seeds]);
      const seeds = [...maps[0][1].keys()].filter(s => maps.every(([, m]) => m.has(s)));
      if (!seeds.length) continue;
      const sums = seeds.map(s => maps.reduce((sum, [sign, m]) => sum + sign * m.get(s), 0));
      means.push(sums.reduce((a, b) => a + b, 0) / sums.length);
    }
    return means.length ? means.reduce((a, b) => a + b, 0) / means.length : null;
  };

  const recomputed = trace => {
    if (!filtered || !trace.meta || !trace.meta.effects) return trace;
    const cache = new Map();
    const x = trace.meta.effects.map(effect => {
      if (!cache.has(effect[0])) cache.set(effect[0], outcomes(effect[0]));
      return estimate(effect, cache.get(effect[0]));
    });
    const words = x.map(v => v === null ? "" : `${v.toPrecision(3)} over the variants shown`);
    return { ...trace, x, customdata: words, error_x: { ...trace.error_x, visible: false }, marker: { ...trace.marker, symbol: "circle-open" } };
  };

  // ---- tables ----------------------------------------------------------------------------------
  const sortBy = button => {
    const head = button.closest("th");
    const table = head.closest("table");
    const column = [...head.parentNode.children].indexOf(head);
    const down = head.getAttribute("aria-sort") === "ascending";
    for (const other of $$("th[aria-sort]", table)) other.setAttribute("aria-sort", "none");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const keyOf = row => {
      const cell = row.children[column];
      const raw = cell.dataset.value;
      if (raw === undefined) return cell.classList.contains("num") ? null : cell.textContent.trim();
      return raw !== "" && !Number.isNaN(+raw) ? +raw : raw;
    };
    const rows = $$("tbody tr", table).map(row => [keyOf(row), row]);
    const compare = (a, b) => typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b));
    rows.sort(([a], [b]) => a === null ? (b === null ? 0 : 1) : b === null ? -1 : down ? compare(b, a) : compare(a, b));
    $("tbody", table).append(...rows.map(([, row]) => row));
  };

  let tables = null;
  const csvOf = table => {
    const quote = v => /[",\r\n]/.test(v) ? `"${v.replaceAll('"', '""')}"` : v;
    const columns = table.columns.map(c => c.codes ? c.codes.map(i => c.levels[i]) : c.values);
    const lines = [table.columns.map(c => quote(c.name)).join()];
    for (let i = 0; i < (columns[0] || []).length; i++) {
      lines.push(columns.map(c => c[i] === null ? "" : quote(String(c[i]))).join());
    }
    return lines.join("\r\n") + "\r\n";
  };

  const saveTable = async button => {
    tables = tables || JSON.parse(await unpack("packed-tables"));
    const table = tables[button.dataset.table];
    if (!table.columns) {
      button.textContent = `Too long to embed: see ${table.file}`;
      button.disabled = true;
      return;
    }
    saveBlob(new Blob([csvOf(table)], { type: "text/csv" }), `${button.dataset.table}.csv`);
  };

  // ---- start -----------------------------------------------------------------------------------
  document.addEventListener("click", event => {
    const button = event.target.closest("button");
    if (!button) return;
    if (button.classList.contains("sort")) sortBy(button);
    else if (button.classList.contains("save")) saveTable(button);
    else if (button.classList.contains("picture")) savePicture(button);
    else if (button.classList.contains("legend-key")) toggleKey(button);
    else if (button.classList.contains("show-more")) {
      button.closest(".chart").dataset.all = "yes";
      layPanels(button.closest(".chart"));
      drawSoon();
    } else if (button.id === "theme") {
      choice = { auto: "light", light: "dark", dark: "auto" }[choice];
      applyTheme();
      redrawAll(true);
    }
  });
  const filters = $("#filters");
  if (filters) {
    filters.addEventListener("change", event => event.target.matches("select") ? applyScheme() : applyFilter());
    filters.addEventListener("reset", () => setTimeout(() => { applyScheme(); applyFilter(); }));
    // A heading that a link leads to comes to stand below the bar, however tall that is.
    new ResizeObserver(() => root.style.setProperty("--bar", `${filters.offsetHeight}px`)).observe(filters);
    filters.addEventListener("submit", event => event.preventDefault());
  }
  let width = innerWidth;
  addEventListener("resize", () => {
    if (innerWidth === width) return;
    width = innerWidth;
    sizes.clear();
    for (const figure of $$(".chart")) layPanels(figure);
    redrawAll(true);
  });
  prefersDark.addEventListener("change", () => { applyTheme(); redrawAll(true); });
  addEventListener("beforeprint", () => {
    const kept = choice;
    choice = "light";
    applyTheme();
    state += 1;
    themes += 1;
    for (const plot of $$(".plot")) {
      draw(plot);
      const [w, h] = [plot._fullLayout ? plot._fullLayout.width : 0, plot._fullLayout ? plot._fullLayout.height : 0];
      if (!w) continue;
      plot.style.setProperty("--aspect", String(w / h)); // paper has another width: scale, not cut
      for (const svg of $$(".main-svg", plot)) svg.setAttribute("viewBox", `0 0 ${w} ${h}`);
    }
    choice = kept;
  });
  addEventListener("afterprint", () => {
    for (const svg of $$(".main-svg")) svg.removeAttribute("viewBox");
    applyTheme();
    redrawAll(true);
  });

  const start = async () => {
    applyTheme();
    for (const figure of $$(".chart")) {
      layPanels(figure);
      layLegend(figure);
    }
    sayFilter();
    $(".contents details").open = !isNarrow();
    const details = $("#filters details");
    if (details) details.open = !isNarrow() && $$("#filters input").length <= 30;
    if (!window.DecompressionStream) {
      $("#too-old").hidden = false;
      return;
    }
    const script = document.createElement("script");
    script.textContent = await unpack("packed-plotly");
    document.head.append(script);
    for (const plot of $$(".plot")) watcher.observe(plot);
    root.dataset.ready = String(performance.now());
  };
  start();
})();

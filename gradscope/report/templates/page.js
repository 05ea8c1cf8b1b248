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

  const unpackTrace = trace => {
    for (const name of ["x", "y", "z"]) if (trace[name] && trace[name].bdata) trace[name] = floats(trace[name]);
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
    state.textContent = filtered ? `${n} of ${shownCells.length} cells` : `all ${shownCells.length} cells`;
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
    if (!charts.has(key)) {
      const chart = json(`chart-${key}`);
      for (const panel of chart.panels) panel.unpacked = false;
      charts.set(key, chart);
    }
    return charts.get(key);
  };

  const panelOf = plot => {
    const chart = chartOf(plot.closest(".chart").dataset.chart);
    const panel = chart.panels[+plot.dataset.panel];
    if (!panel.unpacked) {
      panel.data.forEach(unpackTrace);
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
    return { ...trace, x: kept.map(i => trace.x[i]), y: kept.map(i => place.get(meta.rows[i])), text: kept.map(i => trace.text[i]) };
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
      ticktext: kept.map(i => wide ? meta.labels[i] : meta.short[i]), tickfont: { size: kept.length > 40 ? 9 : 11 },
    };
    return layout;
  };

  const traceHeat = trace => trace.meta && trace.meta.per_row
    ? { ...trace, text: trace.text.map(name => trace.z[0].map(() => name)) } : trace;

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
      traces = traces.map(sliced);
      if (!isWide(plot)) traces = traces.map(trace => ({ ...trace, showscale: false }));
      layout = rowLayout(plot, panel, layout);
    } else {
      if (chart.lines) traces = thinned(traces.filter(isShown), chart.lines);
      traces = traces.map(traceHeat).map((trace, i) => ({ ...trace, uid: `t${i}` }));
    }
    const names = layout.yaxis.ticktext;
    if (names && sizeOf(plot)[0] < 480) {
      layout.yaxis.ticktext = names.map(t => t.length > 25 && !t.includes("&") ? `${t.slice(0, 12)}…${t.slice(-12)}` : t);
    }
    for (const shape of layout.shapes || []) shape.line.color = token("--soft");
    return [traces.map(themedTrace), layout];
  };

  const isShown = trace => !trace.meta || trace.meta.v === undefined || shown[trace.meta.v];

  // A filter hides lines without drawing anew, which takes plotly thirty times as long.
  const toggled = plot => {
    const { chart } = panelOf(plot);
    if (chart.lines || chart.options.rows || chart.options.effects || !plot._fullData) return false;
    const groups = new Map($$(".scatterlayer > .trace", plot).map(node => [node, [...node.classList]]));
    for (const trace of plot._fullData) {
      const visible = isShown(trace);
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
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([csvOf(table)], { type: "text/csv" }));
    link.download = `${button.dataset.table}.csv`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  };

  // ---- start -----------------------------------------------------------------------------------
  document.addEventListener("click", event => {
    const button = event.target.closest("button");
    if (!button) return;
    if (button.classList.contains("sort")) sortBy(button);
    else if (button.classList.contains("save")) saveTable(button);
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
    filters.addEventListener("change", applyFilter);
    filters.addEventListener("reset", () => setTimeout(applyFilter));
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
    for (const plot of $$(".plot")) draw(plot);
    choice = kept;
  });
  addEventListener("afterprint", () => { applyTheme(); redrawAll(true); });

  const start = async () => {
    applyTheme();
    for (const figure of $$(".chart")) layPanels(figure);
    sayFilter();
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

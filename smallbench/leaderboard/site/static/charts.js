// The charts, drawn with Observable Plot: with the rows that the table shows, names under the
// pointer, and an axis to choose. Without scripts, a page has a plain table in their place.
"use strict";

(() => {
  const FONT = { fontSize: "12px", fontFamily: "var(--sans)", overflow: "visible" };
  const ACCENT = "var(--accent)", SOFT = "var(--soft)";
  const COLORS = [0, 1, 2, 3, 4, 5, 6, 7].map((number) => `var(--c${number})`);
  const fixed = (value, digits = 2) => value.toFixed(digits);
  const si = (value) => d3.format(".3~s")(value).replace("G", "B");

  // Draws into `place`, and again whenever its width or what it shows has changed: at once where it
  // can be seen, else when somebody comes near.
  const keepDrawn = (place, draw) => {
    let width = 0, drawn = null, wanted = null, isNear = false;
    const update = () => {
      if (wanted === null || (drawn !== null && !isNear)) return;
      if (drawn === null) place.className = "live";
      const style = getComputedStyle(place);
      const found = Math.floor(place.clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight));
      if (found < 50 || (found === width && wanted === drawn)) return;
      [width, drawn] = [found, wanted];
      place.replaceChildren(draw(width));
    };
    new ResizeObserver(update).observe(place);
    new IntersectionObserver(([entry]) => { isNear = entry.isIntersecting; update(); }, { rootMargin: "300px" }).observe(place);
    return (key) => { wanted = key; update(); };
  };
  const follow = (plot, href) => {
    plot.style.cursor = "pointer";
    plot.addEventListener("click", () => { if (plot.value) location.href = href(plot.value); });
    return plot;
  };
  const labelled = (plot, label) => {
    plot.setAttribute("role", "img");
    plot.setAttribute("aria-label", label);
    // Plot names its groups, which have no role that may be named.
    for (const part of plot.querySelectorAll("[aria-label]")) part.removeAttribute("aria-label");
    return plot;
  };
  const front = (points, x) => {
    const found = [];
    for (const point of d3.sort(points, (p) => p[x], (p) => -p.average)) {
      if (!found.length || point.average > found.at(-1).average) found.push(point);
    }
    return found;
  };
  const about = (row) => `${row.name}\nAVG ${fixed(row.average)}` +
    (row.interval ? ` (${row.interval.map((end) => fixed(end)).join(" to ")})` : "") + `\n${row.kind}, ${row.tier}`;

  // ---- an entry's page: the loss of its pretraining

  const last = (point) => point.at(-1);
  const LOSSES = [1, 1.5, 2, 3, 4, 6, 8, 10];
  const lossPlot = (curves, width) => labelled(Plot.plot({
    width, height: 300, marginLeft: 44, marginBottom: 38, style: FONT,
    x: { label: "tokens", tickFormat: si, line: true },
    y: { label: "loss", grid: true, type: "log", tickFormat: "~r", tickSize: 0, inset: 6,
      ticks: LOSSES.filter((loss) => curves.some(({ points }) => d3.min(points, last) < loss && loss < d3.max(points, last))) },
    color: { domain: curves.map((curve) => curve.name), range: COLORS },
    marks: [
      ...curves.map((curve) => Plot.lineY(curve.points, { x: "0", y: "1", stroke: () => curve.name, strokeWidth: 1.75 })),
      Plot.tip(curves.flatMap(({ name, points }) => points.map(([x, y]) => ({ name, x, y }))), Plot.pointerX({
        x: "x", y: "y", title: (d) => `${curves.length > 1 ? `${d.name}\n` : ""}${si(d.x)} tokens\nloss ${fixed(d.y, 3)}` })),
    ],
  }), `Pretraining loss against tokens: ${curves.map(({ name, points }) => `${name} ends at ${fixed(points.at(-1)[1])}`).join("; ")}`);

  const curveData = document.querySelector("script#curve-data");
  if (curveData) {
    const { name, points } = JSON.parse(curveData.textContent);
    keepDrawn(document.getElementById("curve"), (width) => lossPlot([{ name, points }], width))("first");
  }

  const board = window.smallbench;
  if (!board) return;
  const { make, tasks, href } = board;

  // ---- score against what it took

  const AXES = {
    gpu_hours: ["Hours", "hours on one device"], usd: ["Cost", "US dollars"],
    kwh: ["Energy", "kWh"], parameters: ["Parameters", "parameters"],
  };
  const scatter = (rows, x, width) => {
    const points = rows.filter((row) => row.average != null && row[x] > 0);
    const best = front(points.filter((row) => row.rank), x);
    const kinds = [...new Set(points.map((row) => row.kind))];
    const [low, high] = d3.extent(points, (row) => Math.log(row[x]));
    const isFarRight = (row) => Math.log(row[x]) > low + 0.75 * (high - low);
    return follow(labelled(Plot.plot({
      width, height: Math.min(440, Math.max(300, width * 0.5)), marginLeft: 44, marginBottom: 42, marginTop: 26, marginRight: 24, style: FONT,
      // Within a decade, a logarithmic axis would label next to none of its ticks.
      x: { type: high - low < Math.log(10) ? "linear" : "log", label: AXES[x][1], tickFormat: (value) => (value >= 1e4 ? si(value) : String(value)), ticks: Math.max(3, width / 160), inset: 18 },
      y: { label: "AVG", grid: true, inset: 14 },
      color: { domain: kinds, range: COLORS, legend: false },
      marks: [
        Plot.line(best, { x, y: "average", curve: "step-after", stroke: SOFT, strokeDasharray: "4 4" }),
        Plot.ruleX(points.filter((row) => row.interval), { x, y1: (row) => row.interval[0], y2: (row) => row.interval[1], stroke: "kind", strokeOpacity: 0.28, strokeWidth: 1.5 }),
        Plot.dot(points, { x, y: "average", fill: "kind", stroke: "var(--card)", strokeWidth: 1, r: points.length > 120 ? 3.5 : 5 }),
        ...[["start", 8, (row) => !isFarRight(row)], ["end", -8, isFarRight]].map(([textAnchor, dx, filter]) => Plot.text(
          best.length < 9 && width > 500 ? best.filter(filter) : [],
          { x, y: "average", text: "name", textAnchor, dx, dy: -9, fill: "var(--ink)", stroke: "var(--card)", strokeWidth: 4 })),
        Plot.tip(points, Plot.pointer({ x, y: "average", title: about })),
      ],
    }), `AVG against ${AXES[x][1]}: ${points.length} ${points.length === 1 ? "entry" : "entries"}, ${best.length} on the Pareto front` +
      (best.length ? `, from ${best[0].name} to ${best.at(-1).name}` : "")), href);
  };
  const legend = (rows, x) => {
    const kinds = [...new Set(rows.filter((row) => row.average != null && row[x] > 0).map((row) => row.kind))];
    return make("ul", { class: "legend" }, ...kinds.map((kind, index) =>
      make("li", { style: `--color:${COLORS[index % COLORS.length]}` }, kind)),
      make("li", { class: "dashed" }, "Pareto front"));
  };

  // ---- the record

  const recordPlot = (rows, width) => {
    const ranked = d3.sort(rows.filter((row) => row.rank), (row) => row.date, (row) => -row.average)
      .map((row) => ({ ...row, when: new Date(row.date) }));
    const records = [];
    for (const row of ranked) if (!records.length || row.average > records.at(-1).average) records.push(row);
    const last = { ...records.at(-1), when: d3.max(ranked, (row) => row.when) };
    return follow(labelled(Plot.plot({
      width, height: 300, marginLeft: 44, marginTop: 26, marginRight: 24, style: FONT,
      x: { type: "utc", label: null, inset: 10, ticks: Math.max(2, width / 120) }, y: { label: "AVG", grid: true, inset: 10 },
      marks: [
        Plot.dot(ranked, { x: "when", y: "average", r: 3, fill: SOFT, fillOpacity: 0.45 }),
        Plot.line([...records, last], { x: "when", y: "average", curve: "step-after", stroke: ACCENT, strokeWidth: 2 }),
        Plot.dot(records, { x: "when", y: "average", r: 5, fill: ACCENT, stroke: "var(--card)" }),
        Plot.tip(ranked, Plot.pointer({ x: "when", y: "average", title: (row) => `${about(row)}\n${row.date}` })),
      ],
    }), `The best AVG over time: ${records.map((row) => `${row.date} ${row.name} ${fixed(row.average)}`).join("; ")}`), href);
  };

  // ---- task by task

  const taskPlots = (rows, width) => {
    const columns = Math.max(1, Math.min(4, Math.floor((width + 24) / 260)));
    const each = Math.floor((width - 24 * (columns - 1)) / columns);
    const names = rows.map((row) => row.slug);
    const label = new Map(rows.map((row) => [row.slug, row.name]));
    return make("div", { class: "multiples", style: `--columns:${columns}` }, ...tasks.map((task) => {
      const points = rows.filter((row) => row.tasks[task.key]).map((row) => ({ slug: row.slug, name: row.name, rank: row.rank, ...row.tasks[task.key] }));
      const best = d3.max(points, (point) => (point.rank ? point.score : null));
      return make("figure", {}, make("figcaption", {}, task.title, make("span", { class: "soft" }, ` ${task.metric}`)),
        labelled(Plot.plot({
          width: each, height: 40 + 22 * names.length, marginLeft: 118, marginRight: 40, marginTop: 4, marginBottom: 26, style: FONT,
          x: { label: null, ticks: 3, inset: 6 }, y: { domain: names, label: null, tickSize: 0, tickFormat: (slug) => clip(label.get(slug), 17) },
          marks: [
            Plot.ruleY(points.filter((p) => p.interval), { y: "slug", x1: (p) => p.interval[0], x2: (p) => p.interval[1], stroke: ACCENT, strokeOpacity: 0.5, strokeWidth: 2 }),
            Plot.dot(points, { y: "slug", x: "score", fill: (p) => p.interval ? ACCENT : SOFT, r: 4 }),
            Plot.text(points, { y: "slug", text: (p) => fixed(p.score, 1), frameAnchor: "right", textAnchor: "start", dx: 8, fill: "var(--ink)", fontWeight: (p) => (p.rank && p.score === best ? 700 : 400) }),
          ],
        }), `${task.title}: ${points.map((p) => `${p.name} ${fixed(p.score)}`).join("; ")}`));
    }));
  };
  const clip = (text, most) => (text.length > most ? `${text.slice(0, most - 1)}…` : text);

  // ---- where they are

  let shown = { rows: board.rows, pins: [] };
  const scatterPlace = document.getElementById("scatter");
  const known = Object.keys(AXES).filter((key) => board.rows.some((row) => row.average != null && row[key] > 0));
  let drawScatter = null;
  if (scatterPlace && known.length) {
    const place = make("div"), key = make("div");
    const pick = make("fieldset", { class: "chips pick" }, make("legend", { class: "hidden" }, "Against"),
      ...known.map((name) => make("label", {}, make("input", { type: "radio", name: "x", value: name,
        onchange: () => board.change({ x: name }) }), make("span", {}, AXES[name][0]))));
    scatterPlace.className = "";
    scatterPlace.replaceChildren(pick, place, key);
    const axis = () => (known.includes(shown.x) ? shown.x : known[0]);
    const draw = keepDrawn(place, (width) => scatter(shown.rows, axis(), width));
    drawScatter = (state) => {
      for (const input of pick.querySelectorAll("input")) input.checked = input.value === axis();
      draw(state + axis());
      key.replaceChildren(legend(shown.rows, axis()));
    };
  }
  const recordsPlace = document.getElementById("records");
  const drawRecords = recordsPlace && keepDrawn(recordsPlace, (width) => recordPlot(board.rows, width));
  const tasksPlace = document.getElementById("by-task");
  const chosen = () => (shown.pins.length > 1 ? shown.pins : shown.rows.filter((row) => row.average != null && Object.keys(row.tasks).length).slice(0, 8));
  const drawTasks = tasksPlace && keepDrawn(tasksPlace, (width) => taskPlots(chosen(), width));

  let comparing = "";
  const drawCompared = () => {
    const place = document.getElementById("compare-chart"), pins = shown.pins;
    const key = pins.map((row) => row.slug).join();
    if (!place || place.dataset.of === key || pins.length < 2) return;
    place.dataset.of = comparing = key;
    const tasksOf = make("div"), losses = make("div");
    place.replaceChildren(make("h3", {}, "Task by task"), tasksOf, losses);
    keepDrawn(tasksOf, (width) => taskPlots(pins, width))(key);
    Promise.all(pins.map(board.load)).then((found) => {
      const drawn = pins.map(({ name, slug }, index) => ({ name, slug, points: found[index]?.points })).filter((curve) => curve.points?.length > 1);
      if (key !== comparing || !drawn.length) return;
      const inner = make("div");
      losses.append(make("h3", {}, "Pretraining loss"), inner, make("ul", { class: "legend" },
        ...drawn.map(({ name }, index) => make("li", { style: `--color:${COLORS[index]}` }, name))));
      keepDrawn(inner, (width) => lossPlot(drawn, width))(key);
    });
  };

  // The table answers first, then each chart in its turn.
  const idle = window.requestIdleCallback ?? ((run) => setTimeout(run, 50));
  const slugs = (rows) => rows.map((row) => row.slug).join();
  const draws = [
    () => drawScatter?.(slugs(d3.sort(shown.rows, (row) => row.slug))),
    () => drawTasks?.(slugs(chosen())),
    () => drawRecords?.("all"),
  ];
  const isAsked = draws.map(() => false);
  addEventListener("board", (event) => {
    shown = event.detail;
    requestAnimationFrame(() => setTimeout(drawCompared)); // its numbers are seen first
    draws.forEach((draw, index) => {
      if (isAsked[index]) return;
      isAsked[index] = true;
      idle(() => { isAsked[index] = false; draw(); }, { timeout: 300 });
    });
  });
})();

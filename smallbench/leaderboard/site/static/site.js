// The board's table: sort, search, filter, pin, compare. Everything it shows is in the page already;
// without this file the table is whole, in the order of the board. All state is in the address.
"use strict";

(() => {
  const $ = (selector, root = document) => root.querySelector(selector);
  const $$ = (selector, root = document) => [...root.querySelectorAll(selector)];
  const make = (tag, attributes = {}, ...children) => {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
      else if (value !== false && value != null) element.setAttribute(name, value === true ? "" : value);
    }
    element.append(...children.filter((child) => child != null)); // text stays text
    return element;
  };

  // ---- a command to copy

  for (const pre of $$(".command, .prose pre")) {
    const button = make("button", { type: "button", class: "copy", onclick: async () => {
      const text = $("code", pre).textContent.replace(/^\$ /gm, "");
      try {
        await navigator.clipboard.writeText(text);
        button.textContent = "Copied";
      } catch {
        getSelection().selectAllChildren($("code", pre));
        button.textContent = "Selected";
      }
      setTimeout(() => { button.textContent = "Copy"; }, 1500);
    } }, "Copy");
    const frame = make("div", { class: "copyable" });
    pre.replaceWith(frame);
    frame.append(pre, button);
  }

  const tabs = $(".tabs");  // on a phone they are wider than the screen
  if (tabs) tabs.scrollLeft = $("[aria-current]", tabs).offsetLeft - tabs.offsetLeft;

  const source = $("script#board-data");
  if (!source) return;

  // ---- what there is

  const { board: name, tasks, rows } = JSON.parse(source.textContent);
  const MOST_PINS = 4;
  const body = $(".board tbody");
  const form = $(".controls");
  const headers = $$(".board thead [data-key]");
  const say = make("p", { class: "hidden", role: "status" });
  document.body.append(say);

  // A table that the narrow style sheet lays out as a grid is still a table to who listens.
  for (const [role, selector] of Object.entries({
    table: ".board", rowgroup: ".board thead, .board tbody", row: ".board tr", cell: ".board td",
    columnheader: ".board thead th", rowheader: ".board tbody th" })) {
    for (const element of $$(selector)) element.setAttribute("role", role);
  }

  rows.forEach((row, index) => {
    row.element = body.rows[index];
    row.index = index;
  });
  // Whether bit `index` of a hexadecimal number is set.
  const bit = (digits, index) => (parseInt(digits?.at(-1 - (index >> 2)) ?? "0", 16) >> (index & 3)) & 1;
  const doesLead = (a, b) => bit(a.leads, b.index);
  const bySlug = new Map(rows.map((row) => [row.slug, row]));
  const haystack = (row) => row.text ??=
    [row.name, row.slug, row.kind, row.tier, row.gpu, ...row.authors].join("\n").toLowerCase();

  const valueOf = (row, key) => {
    if (key === "rank") return row.rank && row.rank[0] * 1e4 + row.rank[1];
    if (key in row) return row[key];
    return row.tasks[key]?.score;
  };
  const risesFirst = (key) => ["rank", "name", "parameters", "gpu_hours", "kwh", "usd"].includes(key);
  const DEFAULT_SORT = "-average";

  // ---- the state, and the address that holds it

  const read = () => {
    const query = new URLSearchParams(location.search);
    const list = (name) => (query.get(name) ?? "").split(",").filter(Boolean);
    const slugs = (name) => [...new Set(list(name))].filter((slug) => bySlug.has(slug));
    const sort = query.get("sort") ?? DEFAULT_SORT;
    const tiers = new Set(form ? $$("[name=tier]", form).map((box) => box.value) : []);
    const option = (name) => {
      const value = query.get(name) ?? "";
      // A filter with one choice is not on the page.
      return [...(form?.elements[name]?.options ?? [])].some((o) => o.value === value) ? value : "";
    };
    return {
      q: query.get("q") ?? "",
      tier: list("tier").filter((tier) => tiers.has(tier)),
      budget: option("budget"),
      size: option("size"),
      architecture: option("architecture"),
      objective: option("objective"),
      sort: headers.some((th) => th.dataset.key === sort.replace("-", "")) ? sort : DEFAULT_SORT,
      pin: slugs("pin").slice(0, MOST_PINS),
      open: slugs("open"),
      compare: query.has("compare"),
      x: query.get("x") ?? "",
    };
  };
  const queryOf = (state) => {
    const query = new URLSearchParams();
    if (state.q) query.set("q", state.q);
    if (state.tier.length) query.set("tier", state.tier.join(","));
    if (state.budget) query.set("budget", state.budget);
    for (const key of ["size", "architecture", "objective"]) if (state[key]) query.set(key, state[key]);
    if (state.sort !== DEFAULT_SORT) query.set("sort", state.sort);
    if (state.pin.length) query.set("pin", state.pin.join(","));
    if (state.open.length) query.set("open", state.open.join(","));
    if (state.compare && state.pin.length > 1) query.set("compare", "1");
    if (state.x) query.set("x", state.x);
    const text = query.toString().replaceAll("%2C", ",");
    return text && `?${text}`;
  };

  let state = read();
  const change = (changes, { replace = false } = {}) => {
    state = { ...state, ...changes };
    const address = location.pathname + queryOf(state) + location.hash;
    if (queryOf(state) !== location.search) history[replace ? "replaceState" : "pushState"](null, "", address);
    render();
  };
  addEventListener("popstate", () => { state = read(); fill(); render(); });

  // ---- the table

  const matches = (row) =>
    (!state.q || state.q.toLowerCase().split(/\s+/).every((word) => haystack(row).includes(word))) &&
    (!state.tier.length || state.tier.includes(row.tier)) &&
    (!state.budget || (row.gpu_hours != null && row.gpu_hours <= Number(state.budget))) &&
    ["architecture", "objective"].every((key) => !state[key] || row[key] === state[key]) &&
    (!state.size || row.parameters <= 1e6 * Number(state.size));

  const sorted = () => {
    if (state.sort === DEFAULT_SORT) return rows;
    const key = state.sort.replace("-", ""), sign = state.sort.startsWith("-") ? -1 : 1;
    return [...rows].sort((a, b) => {
      const x = valueOf(a, key), y = valueOf(b, key);
      if (x == null || y == null) return (x == null) - (y == null); // what is unknown comes last
      return sign * (typeof x === "string" ? x.localeCompare(y) : x - y);
    });
  };

  let drawnSort = DEFAULT_SORT, ordered = rows;
  const render = () => {
    if (state.sort !== drawnSort) {
      drawnSort = state.sort;
      ordered = sorted();
      body.append(...ordered.flatMap((row) => (row.detail ? [row.element, row.detail] : [row.element])));
    }
    let number = 0;
    for (const row of rows) {
      const isHidden = !matches(row), isPinned = state.pin.includes(row.slug);
      number += !isHidden;
      if (row.element.hidden !== isHidden) row.element.hidden = isHidden;
      if (Boolean(row.detail) !== state.open.includes(row.slug)) toggleDetail(row);
      if (row.detail) row.detail.hidden = isHidden;
      if (Boolean(row.isPinned) !== isPinned) {
        row.isPinned = isPinned;
        row.element.classList.toggle("pinned", isPinned);
        $(".pin", row.element).setAttribute("aria-pressed", isPinned);
      }
    }
    for (const th of headers) {
      const isSorted = th.dataset.key === state.sort.replace("-", "");
      if (isSorted) th.setAttribute("aria-sort", state.sort.startsWith("-") ? "descending" : "ascending");
      else th.removeAttribute("aria-sort");
    }
    if (form) {
      const noun = rows.length === 1 ? "entry" : "entries";
      const text = number === rows.length ? `${number} ${noun}` : `${number} of ${rows.length} ${noun}`;
      const count = $(".count", form);
      if (count.textContent !== text) count.textContent = text;
      $("[type=reset]", form).hidden = number === rows.length && !state.q;
      $(".empty").hidden = number > 0;
    }
    const kept = queryOf(state);
    for (const link of $$(".tabs [data-view]")) link.search = kept;
    drawTray();
    drawComparison();
    dispatchEvent(new CustomEvent("board", { detail: { rows: ordered.filter((row) => !row.element.hidden), pins: pinned(), x: state.x } }));
  };

  for (const th of headers) {
    $("button", th).addEventListener("click", () => {
      const key = th.dataset.key, first = risesFirst(key) ? key : `-${key}`;
      const other = risesFirst(key) ? `-${key}` : key;
      change({ sort: state.sort === first ? other : first });
    });
  }

  // ---- search and filters

  const fill = () => {
    if (!form) return;
    form.elements.q.value = state.q;
    form.elements.budget.value = state.budget;
    form.elements.size.value = state.size;
    for (const key of ["architecture", "objective"]) if (form.elements[key]) form.elements[key].value = state[key];
    for (const box of $$("[name=tier]", form)) box.checked = state.tier.includes(box.value);
  };
  if (form) {
    form.addEventListener("submit", (event) => event.preventDefault());
    // A word is one step of the history, not each of its letters.
    form.elements.q.addEventListener("focus", () => { form.isNewSearch = true; });
    form.elements.q.addEventListener("input", () => {
      change({ q: form.elements.q.value.trim() }, { replace: !form.isNewSearch });
      form.isNewSearch = false;
    });
    form.addEventListener("change", (event) => {
      if (event.target.name === "q") return;
      change({
        tier: $$("[name=tier]:checked", form).map((box) => box.value),
        budget: form.elements.budget.value,
        size: form.elements.size.value,
        architecture: form.elements.architecture?.value ?? "",
        objective: form.elements.objective?.value ?? "",
      });
    });
    const clear = () => {
      change({ q: "", tier: [], budget: "", size: "", architecture: "", objective: "" });
      fill();
      form.elements.q.focus();
    };
    form.addEventListener("reset", (event) => { event.preventDefault(); clear(); });
    $("[data-clear]").addEventListener("click", clear);
    addEventListener("keydown", (event) => {
      const isTyping = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName);
      if (event.key === "/" && !isTyping && !event.ctrlKey && !event.metaKey && !event.altKey) {
        event.preventDefault();
        form.elements.q.focus();
      }
    });
  }

  // ---- a row's details and its pin

  const short = (value) => value == null ? "–" : new Intl.NumberFormat("en", {
    notation: "compact", maximumSignificantDigits: 3 }).format(value);
  const fixed = (value, digits = 2) => (value == null ? "–" : value.toFixed(digits));
  const pairs = (entries) => make("dl", {}, ...entries
    .filter(([, value]) => value != null && value !== "–")
    .map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, make("bdi", {}, value)))));
  const href = (row) => `entries/${row.slug}/index.html`;

  // An element a word, so that no line is broken at a hyphen.
  const words = (text) => text.split(/(\s+)/).map((part) => (
    /\S/.test(part) ? make("span", { class: "word" }, part) : part));

  const detailOf = (row) => {
    const cell = make("td", { colspan: headers.length, role: "cell" });
    if (row.command) cell.append(make("pre", { class: "command", tabindex: 0 }, make("code", {}, ...words(row.command))));
    cell.append(pairs([
      ["Authors", row.authors.join(", ")], ["Device", row.gpu], ["Tokens", short(row.tokens)],
      ["CO₂", row.kg_co2 == null ? null : `${fixed(row.kg_co2)} kg`],
    ]));
    if (row.notes.length) cell.append(make("ul", {}, ...row.notes.map((note) => make("li", {}, make("bdi", {}, note)))));
    cell.append(make("a", { href: href(row) }, "Scores of each seed, checks, configuration and downloads"));
    return make("tr", { class: "detail", id: `detail-${row.slug}`, role: "row" }, cell);
  };

  const toggleDetail = (row) => {
    if (row.detail) {
      row.detail.remove();
      delete row.detail;
    } else {
      row.detail = detailOf(row);
      row.element.after(row.detail);
    }
    const button = $(".more", row.element);
    button.setAttribute("aria-expanded", Boolean(row.detail));
    button.setAttribute("aria-controls", `detail-${row.slug}`);
  };

  body.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    const { slug } = rows.find((row) => row.element.contains(button));
    if (button.classList.contains("more")) {
      const others = state.open.filter((other) => other !== slug);
      change({ open: others.length < state.open.length ? others : [...others, slug] });
    } else if (button.classList.contains("pin")) {
      toggle(slug);
    }
  });

  const pinned = () => state.pin.map((slug) => bySlug.get(slug));
  const toggle = (slug) => {
    if (state.pin.includes(slug)) {
      change({ pin: state.pin.filter((other) => other !== slug) });
      say.textContent = `${bySlug.get(slug).name} is no longer pinned`;
    } else if (state.pin.length === MOST_PINS) {
      say.textContent = `${MOST_PINS} entries are pinned already; take one off first`;
      $(".tray").classList.remove("full");
      requestAnimationFrame(() => $(".tray").classList.add("full"));
    } else {
      change({ pin: [...state.pin, slug] });
      say.textContent = `${bySlug.get(slug).name} is pinned, ${state.pin.length} of ${MOST_PINS}`;
    }
  };

  let tray = null, drawnTray = "";
  const drawTray = () => {
    const key = state.pin.join();
    if (key === drawnTray) return;
    drawnTray = key;
    const focused = tray?.contains(document.activeElement);
    tray?.remove();
    tray = null;
    document.body.classList.toggle("has-tray", state.pin.length > 0);
    if (!state.pin.length) {
      if (focused) form?.elements.q.focus();
      return;
    }
    tray = make("div", { class: "tray", role: "region", "aria-label": "Pinned entries" },
      ...pinned().map((row) => make("span", { class: "chip" }, make("span", {}, row.name),
        make("button", { type: "button", "aria-label": `Unpin ${row.name}`, onclick: () => toggle(row.slug) }, "×"))),
      make("button", { type: "button", class: "button", disabled: state.pin.length < 2,
        onclick: () => change({ compare: true }) }, state.pin.length < 2 ? "Pin one more to compare" : "Compare"));
    document.body.append(tray);
    if (focused) $("button", tray).focus();
  };

  // ---- what only a comparison needs of an entry, each from a file of its own

  const loading = new Map(), arrived = new Map();
  const load = (row) => {
    if (!loading.has(row.slug)) {
      loading.set(row.slug, new Promise((resolve) => {
        arrived.set(row.slug, resolve);
        document.head.append(make("script", { src: `entries/${row.slug}/data.js`, onerror: () => resolve(null) }));
      }));
    }
    return loading.get(row.slug);
  };

  // ---- two to four side by side

  const range = (interval, digits = 2) => interval &&
    make("span", { class: "range" }, `${fixed(interval[0], digits)} to ${fixed(interval[1], digits)}`);

  const comparison = (chosen) => {
    const line = (name, value, { best = null, draw = (found) => found } = {}) => {
      const values = chosen.map(value);
      if (values.every((found) => found == null)) return null;
      const ranked = values.filter((found, index) => found != null && chosen[index].rank);
      const top = best && ranked.length > 1 ? best(...ranked) : null;
      return make("tr", {}, make("th", { scope: "row" }, name), ...chosen.map((row, index) => make("td",
        { class: top != null && row.rank && values[index] === top ? "lead-cell" : null },
        ...[values[index] == null ? "–" : draw(values[index], row)].flat().filter((part) => part != null))));
    };
    const score = (task) => (value, row) =>
      [fixed(value), range(task ? row.tasks[task].interval : row.interval),
        task && make("span", { class: "verdict", "data-task": task, "data-slug": row.slug })];
    const verdict = (row) => {
      const others = chosen.filter((other) => other !== row && other.rank);
      const named = (word, found) => found.length ? `${word} ${found.map((other) => other.name).join(", ")}` : null;
      return row.rank && [
        named("leads", others.filter((other) => doesLead(row, other))),
        named("ties with", others.filter((other) => !doesLead(row, other) && !doesLead(other, row))),
        named("is behind", others.filter((other) => doesLead(other, row))),
      ].filter(Boolean).join("; ");
    };
    const { max, min } = Math;
    return make("table", {},
      make("thead", {}, make("tr", {}, make("td"), ...chosen.map((row) =>
        make("th", { scope: "col" }, make("a", { href: href(row) }, make("bdi", {}, row.name)))))),
      make("tbody", {}, ...[
        line("Rank", (row) => row.rank && [...new Set(row.rank)].join("–")),
        line("Tier", (row) => row.tier),
        line("AVG", (row) => row.average, { best: max, draw: score() }),
        line("Verdict on AVG", verdict),
        ...tasks.map((task) => line(task.title, (row) => row.tasks[task.key]?.score, { best: max, draw: score(task.key) })),
        line("Model", (row) => row.kind),
        line("Parameters", (row) => row.parameters, { best: min, draw: short }),
        line("Tokens", (row) => row.tokens, { draw: short }),
        line("Device", (row) => row.gpu),
        line("Hours", (row) => row.gpu_hours, { best: min, draw: (value) => fixed(value, 1) }),
        line("Cost, US$", (row) => row.usd, { best: min, draw: (value) => fixed(value) }),
        line("Energy, kWh", (row) => row.kwh, { best: min, draw: (value) => fixed(value) }),
        line("CO₂, kg", (row) => row.kg_co2, { best: min, draw: (value) => fixed(value) }),
        line("Date", (row) => row.date),
        line("Command", (row) => row.command, { draw: (command) => make("code", {}, ...words(command)) }),
      ].filter(Boolean)));
  };

  // The paired verdict of each task, for each pair by itself.
  const addVerdicts = async (chosen) => {
    const found = await Promise.all(chosen.map(load));
    const leads = new Map(chosen.map((row, index) => [row.slug, found[index]?.leads?.[name]]));
    for (const place of $$(".verdict", dialog)) {
      const { task, slug } = place.dataset, row = bySlug.get(slug);
      const others = chosen.filter((other) => other !== row && leads.get(other.slug)?.[task]);
      if (!leads.get(slug)?.[task] || !others.length) continue;
      const named = (word, those) => those.length ? `${word} ${those.map((other) => other.name).join(", ")}` : null;
      place.textContent = [
        named("leads", others.filter((other) => bit(leads.get(slug)[task], other.index))),
        named("is behind", others.filter((other) => bit(leads.get(other.slug)[task], row.index))),
      ].filter(Boolean).join("; ") || "ties";
    }
  };

  let dialog = null, drawnComparison = "";
  const drawComparison = () => {
    const isOpen = state.compare && state.pin.length > 1;
    if (!isOpen) {
      if (dialog?.open) dialog.close();
      return;
    }
    if (!dialog) {
      dialog = make("dialog", { class: "compare", "aria-labelledby": "compare-title" });
      dialog.addEventListener("close", () => { if (state.compare) change({ compare: false }); });
      dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
      document.body.append(dialog);
    }
    if (drawnComparison !== state.pin.join()) {
      drawnComparison = state.pin.join();
      dialog.replaceChildren(
        make("div", { class: "compare-head" }, make("h2", { id: "compare-title" }, `${state.pin.length} entries side by side`),
          make("button", { type: "button", class: "button", onclick: () => dialog.close() }, "Close")),
        make("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Comparison" }, comparison(pinned())),
        make("div", { id: "compare-chart" }),
        make("p", { class: "fine" }, "Bold is the best of those that are ranked. A leads B if the range of A − B is above zero: on AVG for all pairs of this board together, on a task for each pair by itself. The ranges: ",
          make("code", {}, `smallbench leaderboard compare submissions/${state.pin[0]} submissions/${state.pin[1]} --glue=hub`)));
      addVerdicts(pinned());
    }
    if (!dialog.open) dialog.showModal();
  };

  window.smallbench = { tasks, rows, href, make, change, load, loaded: (slug, data) => arrived.get(slug)?.(data) };
  fill();
  // After every deferred script, so that the charts hear of the first state too.
  addEventListener("DOMContentLoaded", render);
})();

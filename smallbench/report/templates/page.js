// The values under the pointer. Everything else on this page works without JavaScript.
"use strict";

const pointsOf = (path) => (path.points ??= Array.from(
  path.getAttribute("d").matchAll(/[ML](\d+) (-?\d+)/g), ([, x, y]) => [Number(x), Number(y)]));

const short = (value) => {
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e6)) return value.toExponential(2);
  return value.toLocaleString("en", { maximumSignificantDigits: 4 });
};

const isShown = (element) => getComputedStyle(element).display !== "none";

for (const plot of document.querySelectorAll(".plot")) {
  const svg = plot.querySelector("svg");
  const { width, height } = svg.viewBox.baseVal;
  const low = Number(plot.dataset.low), high = Number(plot.dataset.high);
  const valueAt = (y) => {
    const share = 1 - y / height;
    return "log" in plot.dataset ? low * (high / low) ** share : low + share * (high - low);
  };
  const cursor = Object.assign(document.createElement("div"), { className: "cursor", hidden: true });
  const tip = Object.assign(document.createElement("div"), { className: "tip", hidden: true });
  plot.append(cursor, tip);

  plot.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const x = Math.min(Math.max((event.clientX - box.left) / box.width, 0), 1) * width;
    const axis = [...plot.querySelectorAll(".x-axis")].find(isShown);
    const group = [...svg.children].find(isShown);
    const near = [...group.querySelectorAll("[data-run]")].filter(isShown).map((path) => {
      const points = pointsOf(path);
      const point = points.reduce((best, p) => Math.abs(p[0] - x) < Math.abs(best[0] - x) ? p : best);
      return { path, point };
    });
    if (!near.length) return;
    const at = near.reduce((a, b) => Math.abs(a.point[0] - x) <= Math.abs(b.point[0] - x) ? a : b).point[0];
    const share = at / width;
    cursor.style.left = `${100 * share}%`;
    tip.replaceChildren(`${axis.dataset.name} ${short(share * axis.dataset.high)}`);
    for (const { path, point } of near) {
      const row = document.createElement("div");
      row.className = `run-${path.dataset.run}`;
      const name = document.querySelector(`header label[for=run-${path.dataset.run}]`).textContent;
      row.append(document.createElement("i"), `${name} ${path.dataset.kind}: ${short(valueAt(point[1]))}`);
      tip.append(row);
    }
    tip.style.left = share > 0.5 ? "auto" : `calc(${100 * share}% + .6rem)`;
    tip.style.right = share > 0.5 ? `calc(${100 * (1 - share)}% + .6rem)` : "auto";
    cursor.hidden = tip.hidden = false;
  });
  plot.addEventListener("pointerleave", () => { cursor.hidden = tip.hidden = true; });
}

"use strict";
const table = document.getElementById("headline");
const body = table.tBodies[0];
const key = (row, column) => {
  const cell = row.cells[column];
  return cell.dataset.sort === undefined ? cell.textContent.trim() : parseFloat(cell.dataset.sort);
};
const order = (a, b) => {
  if (typeof a === "string") return a.localeCompare(b, undefined, { numeric: true });
  return a - b;
};
const missing = (value) => value === "" || Number.isNaN(value);
table.tHead.querySelectorAll("th").forEach((head, column) => {
  head.querySelector("button").addEventListener("click", () => {
    const numeric = head.classList.contains("num");
    const now = head.getAttribute("aria-sort");
    const next = now === "none" ? (numeric ? "descending" : "ascending")
      : now === "ascending" ? "descending" : "ascending";
    table.tHead.querySelectorAll("th").forEach((other) => other.setAttribute("aria-sort", "none"));
    head.setAttribute("aria-sort", next);
    const sign = next === "ascending" ? 1 : -1;
    const rows = [...body.rows].sort((a, b) => {
      const x = key(a, column), y = key(b, column);
      if (missing(x) || missing(y)) return missing(x) - missing(y);  // missing values stay last
      return sign * order(x, y);
    });
    body.append(...rows);
  });
});
const filter = document.getElementById("filter");
const shown = document.getElementById("shown");
filter.addEventListener("input", () => {
  const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
  let count = 0;
  for (const row of body.rows) {
    const text = [...row.cells].slice(0, 4).map((cell) => cell.textContent).join(" ").toLowerCase();
    row.hidden = !words.every((word) => text.includes(word));
    count += !row.hidden;
  }
  shown.textContent = words.length ? `${count} of ${body.rows.length} lines` : "";
});
// A link to a cell opens the section that holds it.
const reveal = () => {
  const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  for (let part = target; part; part = part.parentElement) if (part.tagName === "DETAILS") part.open = true;
  if (target) target.scrollIntoView();
};
addEventListener("hashchange", reveal);
reveal();

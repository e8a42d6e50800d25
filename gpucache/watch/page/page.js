"use strict";
// The table of entries: hide the rows that lack a word, and sort by a column, numbers by their value.
const table = document.getElementById("entries");
const body = table.tBodies[0];
const rows = Array.from(body.rows);
const search = document.getElementById("search");
const shown = document.getElementById("shown");

function filter() {
  const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
  let count = 0;
  for (const row of rows) {
    const text = row.textContent.toLowerCase();
    row.hidden = !words.every((word) => text.includes(word));
    if (!row.hidden) count += 1;
  }
  shown.textContent = `${count} of ${rows.length} rows`;
}

function compare(a, b) {
  if (a.dataset.number !== undefined && b.dataset.number !== undefined) {
    return Number(a.dataset.number) - Number(b.dataset.number);
  }
  return a.textContent.localeCompare(b.textContent, undefined, { numeric: true });
}

function sortBy(head) {
  const descending = head.getAttribute("aria-sort") === "ascending";
  for (const other of head.parentElement.cells) other.setAttribute("aria-sort", "none");
  head.setAttribute("aria-sort", descending ? "descending" : "ascending");
  const column = head.cellIndex;
  rows.sort((a, b) => compare(a.cells[column], b.cells[column]));
  if (descending) rows.reverse();
  body.append(...rows);
}

for (const head of table.tHead.rows[0].cells) {
  head.firstElementChild.addEventListener("click", () => sortBy(head));
}
search.addEventListener("input", filter);
filter();

// Tables: filtering, sorting, and files of them.
function save(content, type, name) {
  const url = URL.createObjectURL(content instanceof Blob ? content : new Blob([content], {type}));
  Object.assign(document.createElement("a"), {href: url, download: name}).click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}

// A spreadsheet would run what begins like a formula, unless it is a number.
const asCell = text => `"${(/^[=+\-@\t\r]/.test(text) && isNaN(text) ? "'" + text : text).replaceAll('"', '""')}"`;
const saveRows = (rows, name) => save(rows.map(row => row.map(asCell).join(",") + "\r\n").join(""), "text/csv", name);
const textOf = cell => cell.textContent.trim().replace(/\s+/g, " ");

document.querySelectorAll("[data-csv]").forEach(button => button.addEventListener("click", () => {
  const table = document.getElementById(button.dataset.csv), head = [...table.tHead.rows].at(-1);
  const kept = [...head.cells].map(cell => !cell.classList.contains("bars"));
  const rows = [head, ...table.tBodies[0].rows].map(row => [...row.cells].filter((_, column) => kept[column]).map(textOf));
  saveRows(rows, `${button.dataset.csv}.csv`);
}));

const uncertain = document.getElementById("uncertain-cells"), uncertainRows = uncertain.tBodies[0];
document.getElementById("filter").addEventListener("input", event => {
  const asked = event.target.value.toLowerCase();
  for (const row of uncertainRows.rows) row.hidden = !row.textContent.toLowerCase().includes(asked);
});
uncertain.querySelectorAll("[data-sort]").forEach((button, column) => button.addEventListener("click", () => {
  const head = button.parentElement, up = head.ariaSort !== "ascending", text = row => row.cells[column].textContent;
  for (const one of head.parentElement.cells) one.ariaSort = "none";
  head.ariaSort = up ? "ascending" : "descending";
  const order = (a, b) => text(a).localeCompare(text(b), "en", {numeric: true});
  uncertainRows.append(...[...uncertainRows.rows].sort((a, b) => up ? order(a, b) : order(b, a)));
}));

document.getElementById("copy").addEventListener("click", async event => {
  const code = document.getElementById("code");
  try {
    await navigator.clipboard.writeText(code.textContent);
    event.target.textContent = "Copied";
  } catch {  // Browsers may forbid this to a page opened from a file: select the text instead.
    getSelection().selectAllChildren(code);
    event.target.textContent = "Selected";
  }
});

// The map of the cells, and the table of the least certain ones.
const cells = JSON.parse(document.getElementById("cells").textContent);
const canvas = document.querySelector(".map canvas"), legend = document.querySelector(".legend");
const chooser = document.getElementById("colour-by"), pointed = document.getElementById("pointed");
const place = new Map(cells.rows.map((row, drawn) => [row, drawn]));
let view = cells.views[0], highlighted = null, marked = null;

const style = name => getComputedStyle(document.documentElement).getPropertyValue(name);
const mix = (from, to, share) => {
  const part = (colour, at) => parseInt(colour.slice(at, at + 2), 16);
  return `rgb(${[1, 3, 5].map(at => Math.round(part(from, at) + (part(to, at) - part(from, at)) * share))})`;
};
const ramp = share => share < .5 ? mix(cells.ramp[0], cells.ramp[1], 2 * share) : mix(cells.ramp[1], cells.ramp[2], 2 * share - 1);

function colourOf(drawn) {
  if (view.codes) return view.names[view.codes[drawn]]?.colour ?? cells.other;
  const [low, high] = view.range;
  return view.values[drawn] === null ? cells.other : ramp(Math.min(1, Math.max(0, (view.values[drawn] - low) / (high - low || 1))));
}

function where(drawn) {
  const margin = 10, width = canvas.clientWidth - 2 * margin, height = canvas.clientHeight - 2 * margin;
  return [margin + cells.x[drawn] * width, margin + (1 - cells.y[drawn]) * height];
}

function draw() {
  const sharp = devicePixelRatio || 1, pen = canvas.getContext("2d");
  canvas.width = canvas.clientWidth * sharp;
  canvas.height = canvas.clientHeight * sharp;
  pen.scale(sharp, sharp);
  const size = Math.max(1, Math.min(3, 90 / Math.sqrt(cells.x.length)));
  const dot = (drawn, radius) => { pen.beginPath(); pen.arc(...where(drawn), radius, 0, 7); };
  for (const above of [false, true]) {  // Highlighted cells are drawn above the others.
    for (let drawn = 0; drawn < cells.x.length; drawn++) {
      const isHighlighted = highlighted === null || view.codes?.[drawn] === highlighted;
      if (isHighlighted !== above) continue;
      pen.fillStyle = isHighlighted ? colourOf(drawn) : style("--line");
      dot(drawn, size);
      pen.fill();
    }
  }
  if (marked !== null) {
    pen.strokeStyle = style("--text");
    pen.lineWidth = 2;
    dot(marked, 9);
    pen.stroke();
  }
}

function drawLegend() {
  legend.replaceChildren();
  if (!view.codes) {
    const bar = document.createElement("div"), ends = document.createElement("div");
    bar.className = "ramp";
    bar.style.background = `linear-gradient(90deg, ${cells.ramp})`;
    ends.className = "ends quiet";
    ends.append(...view.ends.map(text => Object.assign(document.createElement("span"), {textContent: text})));
    legend.append(bar, ends);
    return;
  }
  view.names.forEach((name, code) => {
    const button = document.createElement("button"), dot = document.createElement("i"), size = document.createElement("span");
    button.type = "button";
    button.setAttribute("aria-pressed", highlighted === code);
    dot.style.background = name.colour;
    size.textContent = name.cells.toLocaleString("en");
    button.append(dot, name.name, size);
    button.addEventListener("click", () => { highlighted = highlighted === code ? null : code; draw(); drawLegend(); });
    legend.append(button);
  });
}

function point(drawn) {
  marked = drawn;
  pointed.textContent = drawn === null ? "Point at a cell to read its labels." : [cells.names[drawn], ...cells.views.map(({title, codes, names, values}) =>
    `${title}: ${codes ? names[codes[drawn]]?.name ?? "none" : values[drawn] ?? "none"}`)].join("; ");
  draw();
}

canvas.addEventListener("pointermove", event => {
  const box = canvas.getBoundingClientRect(), x = event.clientX - box.left, y = event.clientY - box.top;
  let nearest = null, least = 12 ** 2;
  for (let drawn = 0; drawn < cells.x.length; drawn++) {
    const [left, top] = where(drawn), distance = (left - x) ** 2 + (top - y) ** 2;
    if (distance < least) [nearest, least] = [drawn, distance];
  }
  if (nearest !== marked) point(nearest);
});
cells.views.forEach((one, number) => chooser.add(new Option(one.title, number)));
chooser.addEventListener("change", () => { view = cells.views[chooser.value]; highlighted = null; draw(); drawLegend(); });
addEventListener("resize", draw);
addEventListener("themechange", draw);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
draw();
drawLegend();

const table = document.getElementById("uncertain-cells"), body = table.tBodies[0];
document.getElementById("filter").addEventListener("input", event => {
  const asked = event.target.value.toLowerCase();
  for (const row of body.rows) row.hidden = !row.textContent.toLowerCase().includes(asked);
});
table.querySelectorAll("th[data-sort]").forEach((head, column) => head.addEventListener("click", () => {
  const up = head.dataset.sort !== "up", text = row => row.cells[column].textContent;
  head.dataset.sort = up ? "up" : "down";
  const order = (a, b) => text(a).localeCompare(text(b), "en", {numeric: true});
  body.append(...[...body.rows].sort((a, b) => up ? order(a, b) : order(b, a)));
}));
body.addEventListener("click", event => {
  const drawn = place.get(Number(event.target.closest("tr").dataset.cell));
  if (drawn === undefined) { pointed.textContent = "This cell is not in the random sample that the map shows."; return; }
  point(drawn);
  document.getElementById("map").scrollIntoView({behavior: "smooth"});
});

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

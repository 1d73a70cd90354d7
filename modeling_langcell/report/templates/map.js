// The map of the cells: colours, names, zoom, and what the pointer finds.
const cells = JSON.parse(document.getElementById("cells").textContent);
const MISSING = 65535, MARGIN = 12, FARTHEST = 1, CLOSEST = 40;
const unpack = text => new Uint16Array(Uint8Array.from(atob(text), letter => letter.charCodeAt(0)).buffer);
const x = Float32Array.from(unpack(cells.x), value => value / MISSING);
const y = Float32Array.from(unpack(cells.y), value => 1 - value / MISSING);
for (const one of cells.views) { if (one.codes) one.codes = unpack(one.codes); else one.values = unpack(one.values); }
const canvas = document.querySelector(".map canvas"), legend = document.querySelector(".legend");
const chooser = document.getElementById("colour-by"), pointed = document.getElementById("pointed");
const showNames = document.getElementById("show-names");
const place = new Map(cells.rows.map((row, drawn) => [row, drawn]));
let view = cells.views[0], highlighted = null, marked = null;
let zoom = 1, centre = [.5, .5];

const style = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const mix = (from, to, share) => {
  const part = (colour, at) => parseInt(colour.slice(at, at + 2), 16);
  return `rgb(${[1, 3, 5].map(at => Math.round(part(from, at) + (part(to, at) - part(from, at)) * share))})`;
};
const ramp = share => share < .5 ? mix(cells.ramp[0], cells.ramp[1], 2 * share) : mix(cells.ramp[1], cells.ramp[2], 2 * share - 1);
const ramps = Array.from({length: 256}, (_, step) => ramp(step / 255));
const shareOf = (one, drawn) => one.values[drawn] / (MISSING - 1);
const numberOf = (one, drawn) => one.range[0] + shareOf(one, drawn) * (one.range[1] - one.range[0]);

function colourOf(drawn) {
  if (view.codes) return view.names[view.codes[drawn]]?.colour ?? cells.other;
  return view.values[drawn] === MISSING ? cells.other : ramps[Math.round(255 * shareOf(view, drawn))];
}

function where(drawn, width, height) {
  const across = (x[drawn] - centre[0]) * zoom + .5, down = (y[drawn] - centre[1]) * zoom + .5;
  return [MARGIN + across * (width - 2 * MARGIN), MARGIN + down * (height - 2 * MARGIN)];
}

function paint(pen, width, height) {
  const size = Math.max(1, Math.min(3, 90 / Math.sqrt(x.length))) * Math.min(2, zoom ** .4), faded = style("--line");
  const circle = (drawn, radius) => { pen.beginPath(); pen.arc(...where(drawn, width, height), radius, 0, 7); };
  // Cells that express a gene, and highlighted ones, are above the others.
  const order = view.gene ? Array.from(x.keys()).sort((a, b) => view.values[a] - view.values[b]) : x.keys();
  const cellsInOrder = [...order];
  for (const above of highlighted === null ? [true] : [false, true]) {
    for (const drawn of cellsInOrder) {
      const isAbove = highlighted === null || view.codes?.[drawn] === highlighted;
      if (isAbove !== above) continue;
      pen.fillStyle = isAbove ? colourOf(drawn) : faded;
      circle(drawn, size);
      pen.fill();
    }
  }
  if (showNames.checked && view.codes) paintNames(pen, width, height);
  if (marked !== null) {
    pen.strokeStyle = style("--text");
    pen.lineWidth = 2;
    circle(marked, size + 5);
    pen.stroke();
  }
}

// The names stand where most of their cells are, the most frequent first, and never on each other.
function paintNames(pen, width, height) {
  pen.font = "600 13px system-ui, sans-serif";
  pen.textAlign = "center";
  pen.textBaseline = "middle";
  pen.lineJoin = "round";
  pen.lineWidth = 4;
  pen.strokeStyle = style("--back");
  pen.fillStyle = style("--text");
  const taken = [];
  view.names.forEach(({name, cells: number}, code) => {
    const own = [];
    for (let drawn = 0; drawn < x.length; drawn++) if (view.codes[drawn] === code) own.push(drawn);
    if (!own.length || (highlighted !== null && highlighted !== code)) return;
    const middle = values => values.sort((a, b) => a - b)[values.length >> 1];
    const centre = [middle(own.map(drawn => x[drawn])), middle(own.map(drawn => y[drawn]))];
    const nearest = own.reduce((best, drawn) => Math.hypot(x[drawn] - centre[0], y[drawn] - centre[1]) <
      Math.hypot(x[best] - centre[0], y[best] - centre[1]) ? drawn : best);
    const text = name.length > 28 ? name.slice(0, 27) + "…" : name, half = pen.measureText(text).width / 2 + 3;
    let [left, top] = where(nearest, width, height);
    if (left < 0 || left > width || top < 0 || top > height) return;
    left = Math.max(half, Math.min(width - half, left));
    top = Math.max(10, Math.min(height - 10, top));
    if (taken.some(([l, t, h]) => Math.abs(l - left) < h + half && Math.abs(t - top) < 17)) return;
    taken.push([left, top, half]);
    pen.strokeText(text, left, top);
    pen.fillText(text, left, top);
  });
}

function draw() {
  const sharp = devicePixelRatio || 1, pen = canvas.getContext("2d");
  canvas.width = canvas.clientWidth * sharp;
  canvas.height = canvas.clientHeight * sharp;
  pen.scale(sharp, sharp);
  paint(pen, canvas.clientWidth, canvas.clientHeight);
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
    button.ariaPressed = highlighted === code;
    dot.className = "dot";
    dot.style.background = name.colour;
    size.textContent = name.cells.toLocaleString("en");
    button.append(dot, name.name, size);
    button.addEventListener("click", () => {
      highlighted = highlighted === code ? null : code;
      legend.childNodes.forEach((one, other) => { one.ariaPressed = highlighted === other; });
      draw();
    });
    legend.append(button);
  });
}

function colourBy(number) {
  view = cells.views[number];
  highlighted = null;
  chooser.value = number;
  draw();
  drawLegend();
}

// ---------------------------------------------------------------------- the pointer

function valueOf(one, drawn) {
  if (one.codes) return one.names[one.codes[drawn]]?.name ?? "none";
  return one.values[drawn] === MISSING ? "none" : numberOf(one, drawn).toFixed(3);
}

function point(drawn) {
  marked = drawn;
  pointed.hidden = drawn === null;
  draw();
  if (drawn === null) return;
  const lines = cells.views.filter(one => !one.gene || one === view).map(one => `${one.title}: ${valueOf(one, drawn)}`);
  pointed.replaceChildren(...[cells.names[drawn], ...lines].map(text => Object.assign(document.createElement("div"), {textContent: text})));
  const [left, top] = where(drawn, canvas.clientWidth, canvas.clientHeight);
  const over = left > canvas.clientWidth / 2, below = top > canvas.clientHeight / 2;
  pointed.style.left = over ? "auto" : `${left + 14}px`;
  pointed.style.right = over ? `${canvas.clientWidth - left + 14}px` : "auto";
  pointed.style.top = below ? "auto" : `${top + 6}px`;
  pointed.style.bottom = below ? `${canvas.clientHeight - top + 6}px` : "auto";
}

function nearest(event) {
  const box = canvas.getBoundingClientRect(), left = event.clientX - box.left, top = event.clientY - box.top;
  let found = null, least = 12 ** 2;
  for (let drawn = 0; drawn < x.length; drawn++) {
    const [across, down] = where(drawn, box.width, box.height), distance = (across - left) ** 2 + (down - top) ** 2;
    if (distance < least) [found, least] = [drawn, distance];
  }
  return found;
}

// ---------------------------------------------------------------------- zoom

function look(closer, towards = centre) {
  const before = zoom;
  zoom = Math.max(FARTHEST, Math.min(CLOSEST, zoom * closer));
  moveTo(towards.map((value, axis) => value + (centre[axis] - value) * before / zoom));
}

function moveTo(to) {
  centre = to.map(value => Math.max(.5 / zoom, Math.min(1 - .5 / zoom, value)));
  canvas.classList.toggle("zoomed", zoom > 1);
  point(null);
}

function placeOf(event) {
  const box = canvas.getBoundingClientRect();
  return [[event.clientX - box.left, box.width], [event.clientY - box.top, box.height]].map(([at, size], axis) =>
    centre[axis] + ((at - MARGIN) / (size - 2 * MARGIN) - .5) / zoom);
}

let dragged = null;
canvas.addEventListener("pointerdown", event => { dragged = [event.clientX, event.clientY]; });
addEventListener("pointerup", () => { dragged = null; });
canvas.addEventListener("pointermove", event => {
  if (dragged && zoom > 1) {
    const sizes = [canvas.clientWidth, canvas.clientHeight], now = [event.clientX, event.clientY];
    moveTo(centre.map((value, axis) => value - (now[axis] - dragged[axis]) / sizes[axis] / zoom));
    dragged = now;
    return;
  }
  const found = nearest(event);
  if (found !== marked) point(found);
});
canvas.addEventListener("pointerleave", event => { if (event.pointerType === "mouse") point(null); });
canvas.addEventListener("dblclick", event => look(2, placeOf(event)));
canvas.addEventListener("wheel", event => {
  if (!event.ctrlKey && !event.metaKey) return;  // The page scrolls. A pinch on a trackpad comes with Ctrl.
  event.preventDefault();
  look(Math.exp(-event.deltaY / 200), placeOf(event));
}, {passive: false});
canvas.addEventListener("keydown", event => {
  const step = .2 / zoom, [across, down] = centre;
  const does = {
    "+": () => look(1.5), "-": () => look(1 / 1.5), "0": () => look(0), "Escape": () => point(null),
    "ArrowLeft": () => moveTo([across - step, down]), "ArrowRight": () => moveTo([across + step, down]),
    "ArrowUp": () => moveTo([across, down - step]), "ArrowDown": () => moveTo([across, down + step]),
  }[event.key === "=" ? "+" : event.key];
  if (!does || (zoom === 1 && event.key.startsWith("Arrow"))) return;
  event.preventDefault();
  does();
});
document.getElementById("closer").addEventListener("click", () => look(1.5));
document.getElementById("farther").addEventListener("click", () => look(1 / 1.5));
document.getElementById("whole").addEventListener("click", () => look(0));

// ---------------------------------------------------------------------- files

document.getElementById("png").addEventListener("click", () => {
  const sharp = 3, width = canvas.clientWidth, height = canvas.clientHeight, row = 20;
  const sheet = document.createElement("canvas"), pen = sheet.getContext("2d");
  const names = view.codes ? view.names : [], beside = names.length ? 320 : 0;
  const full = Math.max(height, 24 + row * names.length);
  Object.assign(sheet, {width: (width + beside) * sharp, height: full * sharp});
  pen.scale(sharp, sharp);
  pen.fillStyle = style("--back");
  pen.fillRect(0, 0, width + beside, full);
  pen.font = "13px system-ui, sans-serif";
  pen.textBaseline = "middle";
  names.forEach((name, code) => {
    pen.fillStyle = name.colour;
    pen.fillRect(width + 8, 14 + row * code, 12, 12);
    pen.fillStyle = style("--text");
    pen.fillText(`${name.name} (${name.cells.toLocaleString("en")})`, width + 28, 20 + row * code, beside - 36);
  });
  pen.beginPath();
  pen.rect(0, 0, width, height);
  pen.clip();
  paint(pen, width, height);
  sheet.toBlob(picture => save(picture, "image/png", `map-${view.title}.png`.replaceAll(/[^\w.-]+/g, "-")));
});

document.getElementById("cells-csv").addEventListener("click", () => {
  const views = cells.views.filter(one => !one.gene);
  saveRows([["cell", ...views.map(one => one.title)], ...cells.names.map((name, drawn) =>
    [name, ...views.map(one => valueOf(one, drawn))])], "cells.csv");
});

// ---------------------------------------------------------------------- start

const genes = Object.assign(document.createElement("optgroup"), {label: "expression of"});
cells.views.forEach((one, number) => (one.gene ? genes : chooser).append(new Option(one.title, number)));
if (genes.children.length) chooser.append(genes);
chooser.addEventListener("change", () => colourBy(chooser.value));
showNames.addEventListener("change", draw);
document.querySelectorAll("[data-gene]").forEach(button => button.addEventListener("click", () => {
  colourBy(cells.views.findIndex(one => one.gene && one.title === button.dataset.gene));
  document.getElementById("map").scrollIntoView({behavior: "smooth"});
}));
uncertainRows.addEventListener("click", event => {
  const row = event.target.closest("tr"), drawn = row && place.get(Number(row.dataset.cell));
  if (!row) return;
  document.getElementById("map").scrollIntoView({behavior: "smooth"});
  look(0);
  if (drawn !== undefined) { point(drawn); return; }
  pointed.hidden = false;
  pointed.textContent = "This cell is not in the random sample that the map shows.";
});
addEventListener("resize", () => point(null));
addEventListener("themechange", draw);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
colourBy(0);

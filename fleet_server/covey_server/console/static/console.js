// What the pages do beyond htmx: take in live regions node by node, keep times true, draw charts, ask before it hurts.
// No inline code anywhere; everything is bound here.

/* ---- taking in new content without losing focus, scroll, open details or what is being typed ---- */

const keyOf = (node) => (node.nodeType === Node.ELEMENT_NODE ? node.id || null : null);

function sameKind(one, other) {
  return one.nodeType === other.nodeType && one.nodeName === other.nodeName && keyOf(one) === keyOf(other);
}

function patchAttributes(from, to) {
  for (const { name } of [...from.attributes]) {
    // A person opened it, htmx works on it, or we drew into it: theirs, not the server's.
    if (!to.hasAttribute(name) && !(from.nodeName === "DETAILS" && name === "open") && name !== "class") from.removeAttribute(name);
  }
  for (const { name, value } of to.attributes) {
    if (from.getAttribute(name) !== value) from.setAttribute(name, value);
  }
  if (!to.hasAttribute("class")) from.removeAttribute("class");
}

function patchNode(from, to) {
  if (from.nodeType !== Node.ELEMENT_NODE) {
    if (from.nodeValue !== to.nodeValue) from.nodeValue = to.nodeValue;
    return;
  }
  if (from.isEqualNode(to)) return;
  patchAttributes(from, to);
  if (!from.classList.contains("chart-body")) patchChildren(from, to);
}

// Nodes that stay are never moved, for moving one costs it the focus: what stands before it and is not wanted goes.
function patchChildren(from, to) {
  const wanted = [...to.childNodes];
  const keys = new Set(wanted.map(keyOf).filter(Boolean));
  const keyed = new Map([...from.children].filter((child) => child.id).map((child) => [child.id, child]));
  let at = from.firstChild;
  const dropUntil = (node) => {
    while (at && at !== node && !keys.has(keyOf(at))) {
      const next = at.nextSibling;
      at.remove();
      at = next;
    }
  };
  for (const node of wanted) {
    const key = keyOf(node);
    let match = key ? keyed.get(key) : at;
    if (!key) while (match && !keyOf(match) && !sameKind(match, node)) match = match.nextSibling;
    if (match && sameKind(match, node)) {
      dropUntil(match);
      if (match === at) at = at.nextSibling;
      else from.insertBefore(match, at);
      patchNode(match, node);
    } else {
      const added = document.importNode(node, true);
      from.insertBefore(added, at);
      if (added.nodeType === Node.ELEMENT_NODE) window.htmx.process(added);
    }
  }
  while (at) {
    const next = at.nextSibling;
    at.remove();
    at = next;
  }
}

window.htmx.defineExtension("morph", {
  isInlineSwap: (style) => style === "morph",
  handleSwap: (style, target, fragment) => {
    if (style !== "morph") return false;
    patchChildren(target, fragment);
    refresh();
    return [target];
  },
});

// The extension for event streams does not ask other extensions how to swap, so its messages are taken in here.
document.body.addEventListener("htmx:sseBeforeMessage", (event) => {
  const region = event.target.closest("#live");
  if (!region || event.detail.type !== "live") return;
  event.preventDefault();
  const parsed = document.createElement("template");
  parsed.innerHTML = event.detail.data;
  patchChildren(region, parsed.content);
  refresh();
});

/* ---- times ---- */

function ago(span) {
  const seconds = span / 1000;
  if (seconds < 5) return "just now";
  for (const [unit, factor, most] of [["s", 1, 60], ["min", 60, 60], ["h", 3600, 48]]) {
    if (seconds < factor * most) return `${Math.floor(seconds / factor)} ${unit} ago`;
  }
  return `${Math.floor(seconds / 86400)} d ago`;
}

function refreshTimes() {
  const now = Date.now();
  for (const time of document.querySelectorAll("time[data-ms]")) {
    const span = now - Number(time.dataset.ms);
    if (span < 0) continue;
    const text = ago(span);
    if (time.textContent !== text) time.textContent = text;
  }
}

/* ---- charts ---- */

const drawn = new WeakMap();

const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function axisMs(values) {
  return values.map((value) => (value >= 1000 ? `${value / 1000} s` : `${Number(value.toPrecision(3))} ms`));
}

function axisTime(plot, ticks) {
  const seconds = plot.scales.x.max - plot.scales.x.min < 600;
  const format = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", ...(seconds ? { second: "2-digit" } : {}) });
  return ticks.map((tick) => format.format(tick * 1000));
}

// The words of the marks stand above the plot, in as many rows as it takes for none to cover another.
const ROW = 14;
const MAX_ROWS = 3;

function markRows(data, width) {
  return Math.min(data.marks.length, width < 600 ? MAX_ROWS : 2);
}

function marks(data, rows) {
  return (plot) => {
    const { ctx, bbox } = plot;
    const ends = Array(rows).fill(-Infinity);
    ctx.save();
    ctx.font = `${11 * devicePixelRatio}px system-ui, sans-serif`;
    ctx.textAlign = "left";
    ctx.textBaseline = "alphabetic";
    ctx.strokeStyle = ctx.fillStyle = style("--soft");
    ctx.setLineDash([4 * devicePixelRatio, 3 * devicePixelRatio]);
    ctx.lineWidth = devicePixelRatio;
    for (const mark of [...data.marks].sort((one, other) => one.t - other.t)) {
      const x = Math.round(plot.valToPos(mark.t, "x", true));
      if (x < bbox.left || x > bbox.left + bbox.width) continue;
      const width = ctx.measureText(mark.text).width;
      const left = Math.min(Math.max(x - 2 * devicePixelRatio, bbox.left), bbox.left + bbox.width - width);
      const row = ends.findIndex((end) => left > end);
      const top = bbox.top - (row < 0 ? 0 : row * ROW * devicePixelRatio);
      ctx.beginPath();
      ctx.moveTo(x, top);
      ctx.lineTo(x, bbox.top + bbox.height);
      ctx.stroke();
      if (row < 0) continue;
      ctx.fillText(mark.text, left, top - 4 * devicePixelRatio);
      ends[row] = left + width + 8 * devicePixelRatio;
    }
    ctx.restore();
  };
}

// Where nothing was measured for a while the line ends; a window that is a little late does not break it.
function gaps(data) {
  const step = data.t.length > 1 ? data.t[1] - data.t[0] : 1;
  return (plot, _series, _from, _to, found) => {
    const limit = plot.valToPos(data.t[0] + 3.5 * step, "x", true) - plot.valToPos(data.t[0], "x", true);
    return found.filter(([from, to]) => to - from > limit);
  };
}

const isPowerOfTen = (value) => value > 0 && Math.abs(Math.log10(value) - Math.round(Math.log10(value))) < 1e-9;

function draw(figure) {
  const body = figure.querySelector(".chart-body");
  const source = figure.dataset.chart;
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  const state = `${body.clientWidth}/${dark}/${source}`;
  const before = drawn.get(figure);
  if (!body.clientWidth || before?.state === state) return;
  before?.plot.destroy();
  const data = JSON.parse(source);
  const groups = [...new Set(data.lines.map((line) => line.group))];
  const values = data.lines.flatMap((line) => line.values).filter((value) => value > 0);
  const log = values.length > 0 && Math.max(...values) / Math.min(...values) > 30;
  const axis = { stroke: style("--soft"), grid: { stroke: style("--line"), width: 1 }, ticks: { show: false }, font: "11px system-ui, sans-serif" };
  const series = data.lines.map((line) => {
    const colour = style(`--s${groups.indexOf(line.group) % 4}`);
    return { label: line.name, stroke: line.kind === "quantile" ? colour : `${colour}90`, width: line.kind === "quantile" ? 2 : 1.25, points: { show: data.t.length < 3 }, gaps: gaps(data) };
  });
  const rows = markRows(data, body.clientWidth);
  const grid = log ? { ...axis.grid, filter: (_, splits) => splits.map((value) => (isPowerOfTen(value) ? value : null)) } : axis.grid;
  const options = {
    padding: [rows ? rows * ROW + 6 : 8, 12, 0, 0],
    width: body.clientWidth,
    height: body.clientHeight,
    legend: { show: false },
    cursor: { drag: { x: false, y: false } },
    scales: { x: { time: true }, y: log ? { distr: 3 } : { range: (_, low, high) => [0, high * 1.15 || 1] } },
    axes: [{ ...axis, size: 30, space: 80, values: axisTime }, { ...axis, grid, size: 62, values: (_, ticks) => axisMs(ticks.map((tick) => tick ?? 0)).map((text, i) => (ticks[i] === null ? "" : text)) }],
    series: [{}, ...series],
    hooks: { draw: [marks(data, rows)] },
  };
  const plot = new window.uPlot(options, [data.t, ...data.lines.map((line) => line.values)], body);
  drawn.set(figure, { plot, state });
}

function refresh() {
  refreshTimes();
  for (const figure of document.querySelectorAll("figure[data-chart]")) draw(figure);
}

/* ---- the stream's state, notices, questions ---- */

function liveState(state, text) {
  for (const line of document.querySelectorAll(".live-state")) {
    line.dataset.live = state;
    line.querySelector(".live-text").textContent = text;
  }
}

document.body.addEventListener("htmx:sseOpen", () => liveState("live", "live"));
document.body.addEventListener("htmx:sseError", () => liveState("lost", "connection lost, trying again"));

let noticeTimer;
function notice(text) {
  const box = document.getElementById("notice");
  box.textContent = text;
  box.hidden = false;
  clearTimeout(noticeTimer);
  noticeTimer = setTimeout(() => { box.hidden = true; }, 8000);
}

document.body.addEventListener("htmx:responseError", ({ detail }) => notice(detail.xhr.responseText || "That did not work."));
document.body.addEventListener("htmx:sendError", () => notice("The server does not answer."));

document.body.addEventListener("htmx:confirm", (event) => {
  if (!event.detail.question) return;
  event.preventDefault();
  const dialog = document.getElementById("confirm");
  dialog.querySelector("#confirm-text").textContent = event.detail.question;
  const answer = (click) => {
    const button = click.target.closest("button");
    if (!button) return;
    dialog.close(button.value);
  };
  dialog.addEventListener("click", answer);
  dialog.addEventListener("close", () => {
    dialog.removeEventListener("click", answer);
    if (dialog.returnValue === "yes") event.detail.issueRequest(true);
    dialog.returnValue = "";
  }, { once: true });
  dialog.showModal();
});

setInterval(refreshTimes, 5000);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", refresh);
window.addEventListener("resize", refresh);
document.body.addEventListener("htmx:afterSettle", refresh);
refresh();

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
  patchField(from, to);
}

// Once somebody has typed into a field, its attribute no longer says what it holds. Where the person is, theirs stays.
function patchField(from, to) {
  if (from === document.activeElement) return;
  if (from.nodeName === "INPUT" && (from.type === "checkbox" || from.type === "radio")) from.checked = to.checked;
  else if (from.nodeName === "INPUT" && from.type !== "file") from.value = to.value;
  else if (from.nodeName === "TEXTAREA") from.value = to.textContent;
  else if (from.nodeName === "OPTION") from.selected = to.hasAttribute("selected");
}

function patchNode(from, to) {
  if (from.nodeType !== Node.ELEMENT_NODE) {
    if (from.nodeValue !== to.nodeValue) from.nodeValue = to.nodeValue;
    return;
  }
  if (from.isEqualNode(to) && !from.matches("input, select, textarea, option") && !from.querySelector("input, select, textarea")) return;
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

/* ---- words and times, in the page's language and the viewer's zone ---- */

const words = JSON.parse(document.body.dataset.words);
const said = (pattern, values) => pattern.replace(/%\((\w+)\)s/g, (_, name) => values[name]);

// The browser's own variant of the page's language (en-GB writes dates otherwise than en-US), else the language itself.
const pageLanguage = document.documentElement.lang;
const locale = (navigator.languages ?? []).find((one) => one.split("-")[0] === pageLanguage.split("-")[0]) ?? pageLanguage;
const exact = new Intl.DateTimeFormat(locale, { dateStyle: "medium", timeStyle: "long" });
const short = new Intl.DateTimeFormat(locale, { dateStyle: "medium", timeStyle: "medium" });

function ago(span) {
  const seconds = span / 1000;
  if (seconds < 5) return words.ago.now;
  for (const [unit, factor, most] of [["s", 1, 60], ["min", 60, 60], ["h", 3600, 48]]) {
    if (seconds < factor * most) return said(words.ago[unit], { n: Math.floor(seconds / factor) });
  }
  return said(words.ago.d, { n: Math.floor(seconds / 86400) });
}

function refreshTimes() {
  const now = Date.now();
  for (const time of document.querySelectorAll("time[data-ms]")) {
    const at = Number(time.dataset.ms);
    const title = exact.format(at);
    if (time.title !== title) time.title = title;
    if (now < at) continue;
    const text = ago(now - at);
    if (time.textContent !== text) time.textContent = text;
  }
  for (const time of document.querySelectorAll("time[data-at]")) {
    const at = Number(time.dataset.at);
    const text = short.format(at);
    if (time.textContent !== text) [time.textContent, time.title] = [text, exact.format(at)];
  }
}

/* ---- charts ---- */

const drawn = new WeakMap();

// A colour of the present theme as rgb(): what the style sheet gives is light-dark(), which a canvas does not read.
const probe = document.createElement("span");
probe.hidden = true;
document.body.append(probe);
function style(name, alpha = 1) {
  probe.style.color = `var(${name})`;
  const [red, green, blue] = getComputedStyle(probe).color.match(/[\d.]+/g);
  return alpha < 1 ? `rgb(${red} ${green} ${blue} / ${alpha})` : `rgb(${red} ${green} ${blue})`;
}

// What the values of a chart are: latency in ms, log10 of an e-value, a factor, or degrees.
const UNITS = {
  latency: (value) => (value >= 1000 ? `${value / 1000} s` : `${Number(value.toPrecision(3))} ms`),
  evidence: (value) => (Math.abs(value - Math.round(value)) > 1e-6 ? "" : value <= 4 && value >= -2 ? String(Number((10 ** value).toPrecision(3))) : `1e${Math.round(value)}`),
  change: (value) => `${value < 1 ? "−" : "+"}${Number((Math.abs(value - 1) * 100).toPrecision(3))} %`,
  degrees: (value) => `${value < 0 ? "−" : "+"}${Number(Math.abs(value).toPrecision(3))} °C`,
};

function axisTime(plot, ticks) {
  const seconds = plot.scales.x.max - plot.scales.x.min < 600;
  const format = new Intl.DateTimeFormat(locale, { hourCycle: "h23", hour: "2-digit", minute: "2-digit", ...(seconds ? { second: "2-digit" } : {}) });
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

// A horizontal line that means something: the boundary that halts, the change that is tolerated.
function limitLine(limit) {
  return (plot) => {
    if (!limit) return;
    const { ctx, bbox } = plot;
    const y = Math.round(plot.valToPos(limit.value, "y", true));
    if (y < bbox.top || y > bbox.top + bbox.height) return;
    ctx.save();
    ctx.strokeStyle = ctx.fillStyle = style("--bad");
    ctx.lineWidth = devicePixelRatio;
    ctx.setLineDash([6 * devicePixelRatio, 4 * devicePixelRatio]);
    ctx.beginPath();
    ctx.moveTo(bbox.left, y);
    ctx.lineTo(bbox.left + bbox.width, y);
    ctx.stroke();
    ctx.font = `${11 * devicePixelRatio}px system-ui, sans-serif`;
    ctx.textAlign = "right";
    const above = y - bbox.top > 16 * devicePixelRatio;
    ctx.fillText(limit.text, bbox.left + bbox.width - 2 * devicePixelRatio, y + (above ? -4 : 13) * devicePixelRatio);
    ctx.restore();
  };
}

function verticalScale(data, log) {
  const limits = data.limit ? [data.limit.value] : [];
  if (data.kind === "evidence") return { range: (_, low, high) => [Math.min(0, low, ...limits) - 0.2, Math.max(high, ...limits) + 0.4] };
  if (data.kind === "change" || data.kind === "degrees") {
    const rest = data.kind === "change" ? 1 : 0;
    return { range: (_, low, high) => {
      const [from, to] = [Math.min(low, rest, ...limits), Math.max(high, rest, ...limits)];
      const room = (to - from || 0.02) * 0.12;
      return [from - room, to + room];
    } };
  }
  return log ? { distr: 3 } : { range: (_, low, high) => [0, high * 1.15 || 1] };
}

function draw(figure) {
  const body = figure.querySelector(".chart-body");
  const source = figure.dataset.chart;
  const state = `${body.clientWidth}/${style("--ink")}/${source}`;
  const before = drawn.get(figure);
  if (!body.clientWidth || before?.state === state) return;
  before?.plot.destroy();
  const data = JSON.parse(source);
  const groups = [...new Set(data.lines.map((line) => line.group))];
  const values = data.lines.flatMap((line) => line.values).filter((value) => value > 0);
  const kind = data.kind ?? "latency";
  const log = kind === "latency" && values.length > 0 && Math.max(...values) / Math.min(...values) > 30;
  const axis = { stroke: style("--soft"), grid: { stroke: style("--line"), width: 1 }, ticks: { show: false }, font: "11px system-ui, sans-serif" };
  const series = data.lines.map((line) => {
    const name = kind === "latency" ? `--s${groups.indexOf(line.group) % 4}` : "--s1";
    const strong = line.kind === "quantile";
    const edge = line.kind === "low" || line.kind === "high";
    return { label: line.name, stroke: style(name, strong ? 1 : edge ? 0.25 : 0.56), width: strong ? 2 : 1.25, points: { show: data.t.length < 3 }, ...(kind === "latency" ? { gaps: gaps(data) } : {}) };
  });
  const low = data.lines.findIndex((line) => line.kind === "low") + 1;
  const bands = low ? [{ series: [low + 1, low], fill: style("--s1", 0.16) }] : [];
  const rows = markRows(data, body.clientWidth);
  const grid = log ? { ...axis.grid, filter: (_, splits) => splits.map((value) => (isPowerOfTen(value) ? value : null)) } : axis.grid;
  const options = {
    padding: [rows ? rows * ROW + 6 : 8, 12, 0, 0],
    width: body.clientWidth,
    height: body.clientHeight,
    legend: { show: false },
    cursor: { drag: { x: false, y: false } },
    scales: { x: { time: true }, y: verticalScale(data, log) },
    axes: [{ ...axis, size: 30, space: 80, values: axisTime }, { ...axis, grid, size: 62, values: (_, ticks) => ticks.map((tick) => (tick === null ? "" : UNITS[kind](tick))) }],
    series: [{}, ...series],
    bands,
    hooks: { draw: [marks(data, rows), limitLine(data.limit)] },
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

document.body.addEventListener("htmx:sseOpen", () => liveState("live", words.live));
document.body.addEventListener("htmx:sseError", () => liveState("lost", words.lost));

let noticeTimer;
function notice(text) {
  const box = document.getElementById("notice");
  box.textContent = text;
  box.hidden = false;
  clearTimeout(noticeTimer);
  noticeTimer = setTimeout(() => { box.hidden = true; }, 8000);
}

document.body.addEventListener("htmx:responseError", ({ detail }) => notice(detail.xhr.responseText || words.failed));
document.body.addEventListener("htmx:sendError", () => notice(words.silent));

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

/* ---- forms: what sends itself, what copies, how far an upload is ---- */

document.body.addEventListener("change", ({ target }) => {
  if (target.matches("[data-submit]")) target.form.requestSubmit();
});

document.body.addEventListener("click", async ({ target }) => {
  const button = target.closest("[data-copy]");
  if (!button) return;
  const source = document.querySelector(button.dataset.copy);
  try {
    await navigator.clipboard.writeText(source.textContent);
    notice(words.copied);
  } catch {
    getSelection().selectAllChildren(source); // the clipboard is closed to pages without HTTPS; Ctrl+C copies what is marked
  }
});

const megabytes = (size) => `${new Intl.NumberFormat(locale, { maximumFractionDigits: 1 }).format(size / 1e6)} MB`;

document.body.addEventListener("htmx:xhr:progress", ({ target, detail }) => {
  const box = target.closest("[data-upload]")?.querySelector(".upload");
  if (!box || !detail.lengthComputable) return;
  box.hidden = false;
  box.querySelector("progress").value = (100 * detail.loaded) / detail.total;
  const whole = detail.loaded >= detail.total;
  box.querySelector("[role=status]").textContent = whole ? words.checking : said(words.sent, { done: megabytes(detail.loaded), total: megabytes(detail.total) });
});

document.body.addEventListener("htmx:afterRequest", ({ target, detail }) => {
  const box = target.closest?.("[data-upload]")?.querySelector(".upload");
  if (box && !detail.successful) box.hidden = true;
});

setInterval(refreshTimes, 5000);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", refresh);
window.addEventListener("resize", refresh);
document.body.addEventListener("htmx:afterSettle", refresh);
refresh();

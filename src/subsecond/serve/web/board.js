// The dashboard: what the server says of itself, once a second while it is looked at.

import { count, milliseconds, say } from "./words.js";

const at = (id) => document.getElementById(id);
const EVERY_MS = 1000;
let timer = 0;
let last = null;

export function watch(on) {
  clearTimeout(timer);
  if (on) read();
}

document.addEventListener("language", () => { if (last) draw(last); });

async function read() {
  if (!document.hidden) {
    try {
      const reply = await fetch("/dashboard", { cache: "no-store" });
      if (reply.ok) { last = await reply.json(); trouble(""); draw(last); }
      else trouble(reply.status === 403 ? say("forbidden") : (await reply.json()).error.message);
    } catch { trouble(say("gone")); }
  }
  clearTimeout(timer);
  if (!at("board").hidden) timer = setTimeout(read, EVERY_MS);
}

function trouble(text) { at("trouble").textContent = text; at("trouble").hidden = !text; }

function cell(text, kind = "") {
  const own = document.createElement("td");
  own.textContent = text;
  own.className = kind;
  return own;
}

function row(cells) {
  const own = document.createElement("tr");
  own.append(...cells.map((each) => (each instanceof Node ? each : cell(each))));
  return own;
}

const TEXTS = new Set(["name", "certificate", "weights", "executor", "key", "model"]);

function head(id, names) {
  at(id).replaceChildren(...names.map((name) => {
    const own = document.createElement("th");
    own.className = TEXTS.has(name) ? "text" : "";
    own.textContent = say(name);
    return own;
  }));
}

const sum = (counts) => Object.values(counts).reduce((a, b) => a + b, 0);

function why(counts) {
  return Object.entries(counts).map(([name, n]) => `${say(`reason_${name}`)} ${count(n)}`).join(", ");
}

function counted(counts) {
  const names = why(counts);
  return names ? `${count(sum(counts))} (${names})` : count(sum(counts));
}

function tile(value, name, note = "", kind = "") {
  const own = document.createElement("div");
  own.className = `tile ${kind}`;
  const big = document.createElement("b");
  big.textContent = value;
  const small = document.createElement("span");
  small.textContent = note ? `${name} · ${note}` : name;
  own.append(big, small);
  return own;
}

function draw({ now, total, ledger, latencies, tokens_per_s: speeds }) {
  at("cards").hidden = false;
  const broken = sum(total.broken), declined = sum(total.declined);
  const ended = total.kept + broken;
  const share = ended ? `${(100 * total.kept / ended).toFixed(total.kept === ended ? 0 : 2)} %` : "–";
  const running = now.models.reduce((n, own) => n + own.running, 0);
  const waiting = now.models.reduce((n, own) => n + own.waiting, 0);
  at("tiles").replaceChildren(
    tile(count(total.promised), say("promised")),
    tile(share, say("keptShare"), ended ? say("of", { a: count(total.kept), b: count(ended) }) : "", broken ? "" : "good"),
    tile(count(broken), say("broken"), why(total.broken), broken ? "bad" : ""),
    tile(count(declined), say("declinedCount"), why(total.declined)),
    tile(count(running), say("now"), waiting ? say("waitingCount", { n: count(waiting) }) : ""),
    tile(count(speeds.at(-1)), say("perSecond")),
  );
  const limits = now.models[0]?.limits ?? {};
  drawSpeed(speeds, Math.max(0, ...Object.values(limits)));
  at("speed-text").textContent = say("speedText", {
    now: count(speeds.at(-1)), most: count(Math.max(...speeds)),
    limit: Object.entries(limits).map(([n, rate]) => say("limitPart", { n, rate: count(Math.round(rate)) })).join(", ") || "–",
  });
  at("latency").replaceChildren(...["ttft", "itl", "total"].map((name) => {
    const own = latencies[`${name}_ms`];
    return row([say(name), ...["p50", "p95", "p99"].map((p) => milliseconds(own[p]))]);
  }));
  at("latency-text").textContent = say("answers", { n: count(latencies.answers) });
  head("models-head", ["name", "certificate", "weights", "executor", "capacity", "limits", "running", "kv"]);
  at("models").replaceChildren(...now.models.map((own) => {
    const pages = sum(own.pages);
    return row([own.name, cell(own.certificate, "text"), cell(own.weights, "text"), cell(own.executor, "text"),
      own.capacity_per_s == null ? "–" : own.capacity_per_s.toFixed(1),
      Object.values(own.limits).map((rate) => count(Math.round(rate))).join(" – "),
      count(own.running), `${count(own.pages.used)} / ${count(pages)} (${Math.round(100 * own.pages.used / Math.max(1, pages))} %)`]);
  }));
  head("ledger-head", ["key", "model", "promised", "keptShare", "broken", "cancelled", "open", "declinedCount"]);
  const rows = ledger.length > 1 ? [...ledger, { ...total, key: null, model: "" }] : ledger;
  at("ledger").replaceChildren(...rows.map((own) => row([
    own.key === null ? say("sum") : own.key || say("anyone"), cell(own.model, "text"), count(own.promised), count(own.kept),
    counted(own.broken), count(own.cancelled),
    count(own.promised - own.kept - own.cancelled - sum(own.broken)),
    counted(own.declined)])));
}

const SVG = "http://www.w3.org/2000/svg";

function shape(kind, attributes) {
  const own = document.createElementNS(SVG, kind);
  for (const [name, value] of Object.entries(attributes)) own.setAttribute(name, value);
  return own;
}

function drawSpeed(speeds, limit) {
  const top = 1.08 * Math.max(limit, ...speeds, 1), width = 600, height = 140;
  const points = speeds.map((v, i) => `${(i * width / (speeds.length - 1)).toFixed(1)},${(height * (1 - v / top)).toFixed(1)}`);
  const parts = [
    shape("path", { class: "area", d: `M0,${height} L${points.join(" L")} L${width},${height} Z` }),
    shape("polyline", { class: "line", points: points.join(" ") }),
  ];
  if (limit) {
    const y = (height * (1 - limit / top)).toFixed(1);
    parts.push(shape("line", { class: "limit", x1: 0, x2: width, y1: y, y2: y }));
  }
  at("speed").replaceChildren(...parts);
}

// The conversation: one question at a time, streamed, with its deadline counting down.

import { count, milliseconds, say } from "./words.js";

const at = (id) => document.getElementById(id);
const list = at("messages");
let turns = [];       // {role, content, fate?, node?}
let models = [];
let running = null;   // {controller, timer}

export async function begin() {
  at("ask").onsubmit = (event) => { event.preventDefault(); send(); };
  at("text").onkeydown = (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); send(); }
  };
  at("stop").onclick = () => running?.controller.abort();
  at("fresh").onclick = () => { running?.controller.abort(); turns = []; draw(); at("text").focus(); };
  at("model").onchange = showModel;
  document.addEventListener("language", draw);
  draw();
  await listModels();
}

async function listModels() {
  try {
    const reply = await fetch("/v1/models");
    models = reply.ok ? (await reply.json()).data : [];
  } catch { models = []; }
  at("model").replaceChildren(...models.map((own) => new Option(own.id, own.id)));
  showModel();
}

function showModel() {
  const own = models.find((each) => each.id === at("model").value);
  at("certificate").textContent = own?.certificate ?? "";
  at("certificate").classList.toggle("good", own?.certificate === "certified");
}

function draw() {
  if (!turns.length) {
    const empty = document.createElement("p");
    empty.className = "empty";
    empty.textContent = say("empty");
    list.replaceChildren(empty);
    return;
  }
  list.replaceChildren(...turns.map(node));
}

function node(turn) {
  const own = document.createElement("div");
  own.className = `message ${turn.role}`;
  const text = document.createElement("span");
  text.textContent = turn.content;
  own.append(text);
  if (turn.role === "assistant") {
    const fate = document.createElement("span");
    own.append(fate);
    turn.text = text;
    turn.fateNode = fate;
    showFate(turn);
  }
  return own;
}

function showFate(turn) {
  const { kind, values, reason } = turn.fate;
  const extra = reason === "deadline" ? ` · ${say("cut")}` : reason === "length" ? ` · ${say("length")}` : "";
  turn.fateNode.className = `fate ${kind}`;
  const name = { kept: "kept", broken: "late" }[kind] ?? kind;
  const mark = kind === "kept" ? "✓ " : ["broken", "declined", "failed"].includes(kind) ? "✕ " : "";
  turn.fateNode.textContent = mark + say(name, values) + extra;
}

async function send() {
  const text = at("text").value.trim();
  if (!text || running) return;
  if (!models.length) await listModels();
  const deadline = Math.round(1000 * Number(at("deadline").value)) || null;
  at("text").value = "";
  turns.push({ role: "user", content: text });
  const turn = { role: "assistant", content: "", fate: { kind: "waiting", values: {} } };
  const spoken = turns.filter((each) => each.content).map(({ role, content }) => ({ role, content }));
  turns.push(turn);
  draw();
  list.scrollTop = list.scrollHeight;
  const controller = new AbortController();
  running = { controller };
  const stopClock = clock(deadline);
  at("send").hidden = true;
  at("stop").hidden = false;
  try {
    await ask({ turn, spoken, deadline, signal: controller.signal });
  } catch (error) {
    turn.fate = error.name === "AbortError" ? { kind: "stopped", values: {} }
      : { kind: "failed", values: { why: say("gone") } };
  }
  stopClock();
  running = null;
  at("send").hidden = false;
  at("stop").hidden = true;
  const wasLow = isLow();
  showFate(turn);
  if (wasLow) list.scrollTop = list.scrollHeight;
  at("text").focus();
}

async function ask({ turn, spoken, deadline, signal }) {
  const body = {
    model: at("model").value, messages: spoken, stream: true,
    stream_options: { include_usage: true },
  };
  const tokens = Number(at("tokens").value);
  if (tokens) body.max_tokens = tokens;
  if (deadline) body.deadline_ms = deadline;
  const reply = await fetch("/v1/chat/completions", {
    method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body), signal,
  });
  if (!reply.ok) {
    const { error } = await reply.json();
    const kind = reply.status === 429 ? "declined" : "failed";
    turn.fate = { kind, values: { why: error.message } };
    return;
  }
  let used = 0, reason = "", promise = null;
  for await (const { name, data } of events(reply.body)) {
    if (name === "error") {
      turn.fate = { kind: "failed", values: { why: data.error.message } };
      return;
    }
    promise = data.subsecond ?? promise;
    used = data.usage?.completion_tokens ?? used;
    for (const choice of data.choices) {
      reason = choice.finish_reason ?? reason;
      if (choice.delta.content) add(turn, choice.delta.content);
    }
  }
  if (!promise) return;
  const values = {
    total: milliseconds(promise.total_ms), asked: milliseconds(promise.deadline_ms),
    first: milliseconds(promise.queue_ms + promise.prefill_ms), tokens: count(used),
  };
  const kind = promise.deadline_ms == null ? "plain" : promise.kept === false ? "broken" : "kept";
  turn.fate = { kind, values, reason };
}

function isLow() { return list.scrollHeight - list.scrollTop - list.clientHeight < 40; }

function add(turn, text) {
  const wasLow = isLow();
  if (!turn.content) turn.fateNode.textContent = "";
  turn.content += text;
  turn.text.append(text);
  if (wasLow) list.scrollTop = list.scrollHeight;
}

// The events of a stream, up to [DONE].
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      let name = "", data = "";
      for (const line of block.split("\n")) {
        if (line.startsWith("event: ")) name = line.slice(7);
        else if (line.startsWith("data: ")) data += line.slice(6);
      }
      if (data === "[DONE]") return;
      if (data) yield { name, data: JSON.parse(data) };
    }
  }
}

// Counts a deadline down; what it gives ends that.
function clock(deadline) {
  if (!deadline) return () => {};
  const begun = performance.now();
  const bar = at("left");
  at("clock").hidden = false;
  let frame = 0;
  const tick = () => {
    const left = deadline - (performance.now() - begun);
    bar.value = Math.max(0, left / deadline);
    bar.classList.toggle("late", left < 0);
    at("left-text").textContent = say(left < 0 ? "over" : "seconds", { n: (Math.abs(left) / 1000).toFixed(1) });
    frame = requestAnimationFrame(tick);
  };
  tick();
  return () => { cancelAnimationFrame(frame); at("clock").hidden = true; };
}

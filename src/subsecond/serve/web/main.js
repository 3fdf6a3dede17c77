// The page's frame: tabs, language, readiness.

import * as board from "./board.js";
import * as chat from "./chat.js";
import { other, say, show } from "./words.js";

const tabs = ["chat", "board"];

function open(name) {
  for (const each of tabs) {
    document.getElementById(each).hidden = each !== name;
    document.getElementById(`tab-${each}`).setAttribute("aria-selected", String(each === name));
  }
  board.watch(name === "board");
  if (location.hash !== `#${name}`) history.replaceState(null, "", `#${name}`);
}

for (const each of tabs) document.getElementById(`tab-${each}`).onclick = () => open(each);
document.getElementById("language").onclick = other;

let condition = "";
const badge = document.getElementById("state");

function showCondition() {
  const good = condition === "ready";
  badge.className = good ? "badge good" : "badge bad";
  badge.textContent = condition === "" ? "" : good ? say("ready")
    : condition === "gone" ? say("gone") : say("unready", { why: condition });
}

async function ask() {
  try {
    const reply = await fetch("/health/ready", { cache: "no-store" });
    condition = reply.ok ? "ready" : (await reply.json()).error.code;
  } catch { condition = "gone"; }
  showCondition();
}

document.addEventListener("language", showCondition);
show();
chat.begin();
open(location.hash === "#board" ? "board" : "chat");
ask();
setInterval(() => { if (!document.hidden) ask(); }, 5000);

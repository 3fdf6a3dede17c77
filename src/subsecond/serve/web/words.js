// Every text of the page in both languages, and which one is shown.

const WORDS = {
  en: {
    other: "中文", chat: "Chat", board: "Dashboard", model: "Model", deadline: "Deadline",
    tokens: "Most tokens", fresh: "New chat", send: "Send", stop: "Stop",
    placeholder: "Ask something. Enter sends, Shift+Enter begins a new line.",
    empty: "Every answer has a deadline: it is promised before it begins, or declined at once.",
    waiting: "waiting for the first token", ready: "ready", unready: "not ready: {why}",
    gone: "no answer from the server",
    kept: "in {total} of {asked} · first token after {first} · {tokens} tokens",
    late: "late: {total} of {asked} · first token after {first} · {tokens} tokens",
    plain: "{total} · first token after {first} · {tokens} tokens",
    cut: "ended for the deadline", length: "token limit reached",
    stopped: "stopped", declined: "declined: {why}", failed: "failed: {why}",
    seconds: "{n} s left", over: "{n} s over",
    promised: "promised", keptShare: "kept", broken: "broken", declinedCount: "declined",
    now: "answers now", perSecond: "tokens/s now", waitingCount: "{n} waiting",
    of: "{a} of {b}", reasons: "{list}", none: "none",
    speed: "Tokens a second, last minute", latency: "Latency, last five minutes", models: "Models",
    ledger: "Promises by key and model, since the ledger began",
    speedText: "now {now}/s, most {most}/s; this machine's limit (dashed): {limit}",
    limitPart: "{rate}/s with {n} at once", answers: "{n} answers", ttft: "to the first token",
    itl: "between tokens", total: "whole answer",
    name: "name", certificate: "certificate", weights: "weights", executor: "computed by",
    capacity: "promises/s", running: "running", kv: "KV pages used", limits: "limit, tokens/s",
    key: "key", open: "open", cancelled: "cancelled", anyone: "(no key)", sum: "together",
    forbidden: "This key may not see the metrics; its right is missing.",
    reason_deadline: "deadline", reason_full: "full", reason_draining: "stopping",
    reason_not_ready: "not ready", reason_concurrency: "at once",
    reason_requests_per_minute: "requests/min", reason_tokens_per_minute: "tokens/min",
    reason_late: "late", reason_short: "short", reason_error: "error", reason_engine: "engine",
    reason_lost: "lost",
  },
  zh: {
    other: "English", chat: "对话", board: "仪表板", model: "模型", deadline: "时限",
    tokens: "词元上限", fresh: "新对话", send: "发送", stop: "停止",
    placeholder: "请输入问题。回车发送，Shift+回车换行。",
    empty: "每个回答都有时限：要么在开始前作出承诺，要么立即谢绝。",
    waiting: "等待首个词元", ready: "就绪", unready: "未就绪：{why}",
    gone: "服务器没有回应",
    kept: "用时 {total}，时限 {asked} · 首个词元 {first} · {tokens} 个词元",
    late: "超时：用时 {total}，时限 {asked} · 首个词元 {first} · {tokens} 个词元",
    plain: "用时 {total} · 首个词元 {first} · {tokens} 个词元",
    cut: "因时限收尾", length: "已达词元上限",
    stopped: "已停止", declined: "已谢绝：{why}", failed: "出错：{why}",
    seconds: "剩余 {n} 秒", over: "超出 {n} 秒",
    promised: "已承诺", keptShare: "已兑现", broken: "未兑现", declinedCount: "已谢绝",
    now: "正在回答", perSecond: "当前词元/秒", waitingCount: "{n} 个排队",
    of: "{a} / {b}", reasons: "{list}", none: "无",
    speed: "每秒词元数（最近一分钟）", latency: "延迟（最近五分钟）", models: "模型",
    ledger: "承诺账本（按密钥与模型，自建账起）",
    speedText: "当前 {now}/秒，最高 {most}/秒；本机极限（虚线）：{limit}",
    limitPart: "{n} 路并行时 {rate}/秒", answers: "{n} 个回答", ttft: "首个词元",
    itl: "词元间隔", total: "完整回答",
    name: "名称", certificate: "证书", weights: "权重", executor: "执行器",
    capacity: "可承诺/秒", running: "运行中", kv: "KV 页占用", limits: "极限（词元/秒）",
    key: "密钥", open: "进行中", cancelled: "已取消", anyone: "（无密钥）", sum: "合计",
    forbidden: "此密钥没有查看指标的权限。",
    reason_deadline: "时限", reason_full: "已满", reason_draining: "正在停止",
    reason_not_ready: "未就绪", reason_concurrency: "并发数",
    reason_requests_per_minute: "每分钟请求", reason_tokens_per_minute: "每分钟词元",
    reason_late: "超时", reason_short: "不足", reason_error: "错误", reason_engine: "引擎",
    reason_lost: "丢失",
  },
};

function remembered() {
  try { return localStorage.getItem("language"); } catch { return null; }
}

let language = remembered() ?? (navigator.language.toLowerCase().startsWith("zh") ? "zh" : "en");
if (!(language in WORDS)) language = "en";

export function say(name, values = {}) {
  const text = WORDS[language][name] ?? name;
  return text.replace(/\{(\w+)\}/g, (_, key) => values[key] ?? "");
}

export function other() {
  language = language === "zh" ? "en" : "zh";
  try { localStorage.setItem("language", language); } catch { /* private browsing */ }
  show();
}

// Writes every fixed text.
export function show() {
  document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
  for (const own of document.querySelectorAll("[data-t]")) own.textContent = say(own.dataset.t);
  document.getElementById("text").placeholder = say("placeholder");
  document.getElementById("language").textContent = say("other");
  document.dispatchEvent(new Event("language"));
}

export function milliseconds(value) {
  if (value == null) return "–";
  return value >= 10000 ? `${(value / 1000).toFixed(1)} s` : `${value < 10 ? value.toFixed(1) : Math.round(value)} ms`;
}

export function count(value) { return value.toLocaleString(language === "zh" ? "zh-CN" : "en"); }

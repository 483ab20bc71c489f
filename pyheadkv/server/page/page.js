// The page's whole program: a conversation over /v1/chat/completions, and what /headkv/rows says of the cache behind it.
"use strict";

const MIB = 1024 * 1024;
const KEPT = "pyheadkv"; // in sessionStorage: a tab has its own conversation, which a reload finds again
const SETTINGS = ["system", "temperature", "max-tokens", "key"];

const byId = (id) => document.getElementById(id);
const talk = { messages: [], turns: [] }; // messages as the API has them, of the user's also `shown`
let attached = []; // [{name, text}]
let running = null; // AbortController of the answer that is coming
let rows = null; // of /headkv/rows
let chosen = { layer: 0, head: 0, place: 0 };

function element(name, text, attributes = {}) {
  const made = document.createElement(name);
  made.textContent = text;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

const mib = (bytes) => (bytes / MIB).toFixed(1);
const seconds = (ms) => `${(ms / 1000).toFixed(1)} s`;
const percent = (share) => `${(100 * share).toFixed(share < 0.1 ? 1 : 0)} %`;

// ---- asking ----

function headers() {
  const key = byId("key").value.trim();
  return { "Content-Type": "application/json", ...(key && { Authorization: `Bearer ${key}` }) };
}

async function failure(response) {
  const body = await response.json().catch(() => null);
  return new Error(body?.error?.message ?? `the server answered with status ${response.status}`);
}

async function getJson(path) {
  const response = await fetch(path, { headers: headers() });
  if (!response.ok) throw await failure(response);
  return response.json();
}

function requestBody() {
  const system = byId("system").value.trim();
  const messages = talk.messages.map(({ role, content }) => ({ role, content }));
  const body = { messages: system ? [{ role: "system", content: system }, ...messages] : messages };
  if (byId("temperature").value !== "") body.temperature = Number(byId("temperature").value);
  if (byId("max-tokens").value !== "") body.max_tokens = Number(byId("max-tokens").value);
  return { ...body, stream: true, stream_options: { include_usage: true } };
}

// Lines of a stream of server-sent events.
async function* lines(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const parts = (held + value).split("\n");
    held = parts.pop();
    yield* parts;
  }
}

// Ask for the answer to what was said; `onText` gets each piece. Gives what the last chunks say of tokens and cache.
async function ask(signal, onText) {
  const body = JSON.stringify(requestBody());
  const response = await fetch("/v1/chat/completions", { method: "POST", headers: headers(), body, signal });
  if (!response.ok) throw await failure(response);
  let found = null;
  let isDone = false;
  for await (const line of lines(response)) {
    const read = line.match(/^: read (\d+) of (\d+)/);
    if (read) showReading(Number(read[1]), Number(read[2]));
    if (line === "data: [DONE]") isDone = true;
    else if (line.startsWith("data: ")) {
      const chunk = JSON.parse(line.slice(6));
      if (chunk.error) throw new Error(chunk.error.message);
      const text = chunk.choices[0]?.delta.content;
      if (text) onText(text);
      if (chunk.headkv) found = { ...found, ...chunk.headkv };
      if (chunk.usage) found = { ...found, usage: chunk.usage };
    }
  }
  if (!isDone) throw new Error("the connection broke off");
  return found;
}

async function send() {
  const text = byId("text").value;
  if (running || !(text.trim() || attached.length)) return;
  const files = attached;
  const content = [...files.map((it) => `--- File: ${it.name} ---\n${it.text.trimEnd()}\n`), text].join("\n");
  const shown = [...files.map((it) => `[${it.name}]`), text].join("\n");
  talk.messages.push({ role: "user", content, shown });
  addMessage("user", shown);
  const answer = addMessage("assistant", "");
  byId("text").value = "";
  attached = [];
  showFiles();
  showError("");
  let said = "";
  let problem = null;
  running = new AbortController();
  showRunning();
  try {
    const found = await ask(running.signal, (piece) => {
      said += piece;
      answer.append(piece);
      showReading(0, 0);
      byId("log").scrollTop = byId("log").scrollHeight;
    });
    talk.turns.push({ ...found, n_messages: talk.messages.length });
  } catch (error) {
    problem = error;
  }
  const isStopped = running.signal.aborted;
  running = null;
  if (said || !problem) talk.messages.push({ role: "assistant", content: said });
  else takeBack(text, files);
  if (problem && !isStopped) showError(problem.message);
  keep();
  showReading(0, 0);
  showRunning();
  byId("status").textContent = isStopped ? "Stopped." : problem ? "" : "Answered.";
  showTurns();
  await showCache();
}

// Nothing was answered: the message is as if it had not been sent, and can be sent again.
function takeBack(text, files) {
  talk.messages.pop();
  byId("log").lastElementChild.remove();
  byId("log").lastElementChild.remove();
  byId("text").value = text;
  attached = files;
  showFiles();
}

// ---- the conversation ----

function addMessage(role, text) {
  const box = element("div", "", { class: `message ${role}` });
  box.append(element("b", role === "user" ? "You" : "Model"), text);
  byId("log").append(box);
  byId("log").scrollTop = byId("log").scrollHeight;
  return box;
}

function showError(text) {
  byId("error").textContent = text;
  byId("error").hidden = !text;
}

function showReading(done, total) {
  byId("reading").hidden = !total || done >= total;
  byId("reading").max = total || 1;
  byId("reading").value = done;
  if (total && done < total) byId("status").textContent = `Reading ${done} of ${total} tokens ...`;
}

function showRunning() {
  byId("send").disabled = Boolean(running);
  byId("stop").disabled = !running;
  byId("new").disabled = Boolean(running);
  if (running) byId("status").textContent = "Waiting for the model ...";
}

function keep() {
  const settings = Object.fromEntries(SETTINGS.map((id) => [id, byId(id).value]));
  try {
    sessionStorage.setItem(KEPT, JSON.stringify({ ...talk, settings }));
  } catch {
    sessionStorage.removeItem(KEPT);
    byId("status").textContent = "This conversation is too long to be kept over a reload.";
  }
}

function restore() {
  const kept = JSON.parse(sessionStorage.getItem(KEPT) ?? "null");
  if (!kept) return;
  talk.messages = kept.messages;
  talk.turns = kept.turns;
  for (const id of SETTINGS) byId(id).value = kept.settings[id] ?? "";
  for (const message of talk.messages) addMessage(message.role, message.shown ?? message.content);
}

function startAnew() {
  talk.messages = [];
  talk.turns = [];
  byId("log").replaceChildren();
  showError("");
  byId("status").textContent = "A new conversation.";
  keep();
  showTurns();
  showPlace();
  byId("text").focus();
}

// ---- files ----

async function attach(files) {
  showError("");
  for (const file of files) {
    try {
      const text = new TextDecoder("utf-8", { fatal: true }).decode(await file.arrayBuffer());
      if (text.includes("\0")) throw new TypeError("a NUL character");
      attached.push({ name: file.name, text });
    } catch {
      showError(`${file.name} is not UTF-8 text.`);
    }
  }
  showFiles();
}

function showFiles() {
  byId("files").replaceChildren(
    ...attached.map((file, at) => {
      const item = element("li", "");
      const remove = element("button", `${file.name}, ${file.text.length} characters ✕`, {
        type: "button",
        "aria-label": `Remove ${file.name}`,
      });
      remove.addEventListener("click", () => {
        attached.splice(at, 1);
        showFiles();
      });
      item.append(remove);
      return item;
    }),
  );
}

// ---- the cache ----

function showTurns() {
  const body = byId("turns").tBodies[0];
  body.replaceChildren(
    ...talk.turns.map((turn, at) => {
      const read = turn.usage.prompt_tokens - turn.usage.prompt_tokens_details.cached_tokens;
      const cells = [at + 1, read, turn.usage.prompt_tokens_details.cached_tokens, turn.usage.completion_tokens];
      const row = element("tr", "");
      for (const cell of [...cells, seconds(turn.ms_prefill + turn.ms_select), seconds(turn.ms_decode), mib(turn.bytes_measured)])
        row.append(element("td", String(cell)));
      return row;
    }),
  );
}

async function showCache() {
  try {
    rows = await getJson("/headkv/rows");
  } catch {
    rows = null; // nothing was answered yet, or a key is needed, which asking says
  }
  byId("map-box").hidden = !rows;
  if (!rows) return;
  const share = rows.bytes_measured / rows.bytes_full;
  byId("memory").textContent =
    `${mib(rows.bytes_measured)} of ${mib(rows.bytes_full)} MiB (${percent(share)} of a whole cache), ` +
    `at most ${mib(rows.bytes_peak)} MiB`;
  byId("meter").value = Math.min(1, share);
  byId("policy").textContent = rows.n_compressed
    ? `${rows.policy}, budget ${rows.budget}: ${rows.n_compressed} of ${rows.n_pos} positions are compressed`
    : `${rows.n_pos} positions, all kept`;
  showMap();
}

function showMap() {
  const n_heads = Math.max(...rows.rows.map((heads) => heads.length));
  const lines = [];
  for (let head = 0; head < n_heads; head++) {
    const line = element("tr", "");
    for (let layer = 0; layer < rows.rows.length; layer++) {
      const n = rows.rows[layer][head];
      if (n === undefined) {
        line.append(element("th", ""));
        continue;
      }
      const cell = element("td", "", {
        tabindex: -1,
        "aria-label": headWords(layer, head),
        title: headWords(layer, head),
      });
      cell.style.setProperty("--share", String(n / Math.max(1, rows.n_pos)));
      cell.addEventListener("pointerenter", () => choose(layer, head));
      cell.addEventListener("focus", () => choose(layer, head));
      line.append(cell);
    }
    lines.push(line);
  }
  byId("map").replaceChildren(...lines);
  if (rows.rows[chosen.layer]?.[chosen.head] === undefined) chosen = { layer: 0, head: 0, place: 0 };
  choose(chosen.layer, chosen.head);
}

function headWords(layer, head) {
  const n = rows.rows[layer][head];
  return `layer ${rows.layers[layer]}, KV head ${head}: ${n} of ${rows.n_pos} rows, ${percent(n / Math.max(1, rows.n_pos))}`;
}

const cellOf = (layer, head) => byId("map").rows[head]?.cells[layer];

function choose(layer, head) {
  const before = cellOf(chosen.layer, chosen.head);
  before?.removeAttribute("aria-selected");
  before?.setAttribute("tabindex", "-1");
  chosen = { ...chosen, layer, head };
  cellOf(layer, head).setAttribute("aria-selected", "true");
  cellOf(layer, head).setAttribute("tabindex", "0");
  byId("head").textContent = headWords(layer, head);
  showStrip();
}

function showStrip() {
  const places = rows.places[chosen.layer]?.[chosen.head] ?? [];
  const most = Math.max(1, ...places);
  byId("strip").replaceChildren(
    ...places.map((n, at) => {
      const bar = element("i", "");
      bar.style.setProperty("--share", String(n / most));
      bar.addEventListener("pointerenter", () => {
        byId("place").value = at;
        showPlace();
      });
      return bar;
    }),
  );
  byId("strip").hidden = byId("place-label").hidden = byId("place-words").hidden = !places.length;
  byId("place").max = Math.max(0, places.length - 1);
  showPlace();
}

function showPlace() {
  const places = rows?.places[chosen.layer]?.[chosen.head] ?? [];
  if (!places.length) return;
  const at = Number(byId("place").value);
  [...byId("strip").children].forEach((bar, i) => bar.classList.toggle("chosen", i === at));
  const first = Math.ceil((at * rows.n_compressed) / places.length);
  const end = Math.ceil(((at + 1) * rows.n_compressed) / places.length);
  byId("place-words").textContent = `positions ${first} to ${end - 1}: ${places[at]} kept\n${textAbout(at / places.length)}`;
}

// What stands in the compressed part, at a share of its length: near, since characters are no tokens.
function textAbout(share) {
  if (!talk.turns.some((turn) => turn.answer === rows.answer)) return "The cache holds another conversation.";
  const turn = talk.turns.find((it) => it.usage.prompt_tokens >= rows.n_compressed); // whose prompt was compressed
  const asked = talk.messages.slice(0, turn?.n_messages ?? 0);
  const text = asked.map((message) => message.content).join("\n");
  const start = Math.floor(share * text.length);
  return `about here: ... ${text.slice(start, start + Math.ceil(text.length / 64) + 40)} ...`;
}

const STEPS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

function moveInMap(event) {
  const step = STEPS[event.key];
  if (!step) return;
  const target = cellOf(chosen.layer + step[0], chosen.head + step[1]);
  if (target?.tagName !== "TD") return;
  event.preventDefault();
  target.focus();
}

// ---- the beginning ----

function listen() {
  byId("form").addEventListener("submit", (event) => {
    event.preventDefault();
    send();
  });
  byId("text").addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    send();
  });
  byId("stop").addEventListener("click", () => running?.abort());
  byId("new").addEventListener("click", startAnew);
  byId("pick").addEventListener("change", async (event) => {
    await attach(event.target.files);
    event.target.value = "";
  });
  for (const id of SETTINGS) byId(id).addEventListener("change", keep);
  byId("key").addEventListener("change", begin);
  byId("map").addEventListener("keydown", moveInMap);
  byId("place").addEventListener("input", showPlace);
  for (const name of ["dragover", "dragleave", "drop"])
    document.addEventListener(name, (event) => {
      event.preventDefault();
      byId("form").classList.toggle("over", name === "dragover");
      if (name === "drop") attach(event.dataTransfer.files);
    });
}

async function begin() {
  try {
    const [card] = (await getJson("/v1/models")).data;
    byId("model").textContent = `${card.id}, context of ${card.context_length} tokens`;
    showError("");
  } catch (error) {
    byId("model").textContent = "not connected";
    showError(error.message);
  }
  await showCache();
}

listen();
restore();
showTurns();
begin();

"use strict";

// A dialogue: turns are typed or spoken, replies are text and, with a voice, speech; the state is shown.

const ROUTE = "/v1/conversations";
const GONE = ["conversation_ended", "not_found"];
const SHOWN = ["node", "question", "slots", "done", "ended"];

let talk = null;             // the conversation, as the service began it
let voice = null;            // the model that speaks replies, if one is served
let busy = false;            // a turn is on its way, or its reply is spoken: the microphone is not listened to
let speaking = null;         // what stops the reply
let release = null;          // closes the microphone
let turn = null;             // what the microphone has of a turn
let latest = 0;              // number of the turn that was begun last

function showTurn(who, text) {
  if (!text) return;
  const item = document.createElement("li");
  item.className = who;
  item.textContent = text;
  $("turns").append(item);
}

function showState(state) {
  $("state").replaceChildren(...SHOWN.map((name) => {
    const row = document.createElement("tr"), key = document.createElement("th"), value = document.createElement("td");
    key.textContent = name;
    value.textContent = typeof state[name] === "string" ? state[name] : JSON.stringify(state[name]);
    row.append(key, value);
    return row;
  }));
}

function show(answer, isSpoken) {
  if (isSpoken) showTurn("user", answer.heard);
  showTurn("reply", answer.say);
  showState(answer.state);
  say(answer.ended ? `The conversation has ended (${answer.ended}).` : "");
  talk.ended = answer.ended;
  $("send").disabled = Boolean(answer.ended);
}

// Speaks a reply to its end, or until it is interrupted.
async function speak(text) {
  if (!voice || !text) return;
  const fetching = new AbortController(), player = new Playback();
  const stopped = new Promise((resolve) => {
    speaking = () => { fetching.abort(); player.stop(); resolve(); };
  });
  $("interrupt").hidden = false;
  try {
    const fields = { model: voice.id, input: text, voice: voice.voices[0] };
    await fetchSpeech(voice.route, fields, fetching.signal, (part) => player.push(part));
    if (player.context?.state === "suspended") return say("the browser plays no sound before a click on the page");
    const left = player.context ? player.end - player.context.currentTime : 0;
    await Promise.race([stopped, new Promise((resolve) => setTimeout(resolve, 1000 * left))]);
  } catch (error) {
    if (error.name !== "AbortError") say(`the reply is not spoken: ${error.message}`, true);
  } finally {
    player.stop();
    speaking = null;
    $("interrupt").hidden = true;
  }
}

// Takes a turn. A reply that is still spoken is interrupted.
async function take(options, isSpoken) {
  const own = talk, number = ++latest;
  speaking?.();
  busy = true;
  say("...");
  try {
    const answer = await request(`${ROUTE}/${own.id}`, { method: "POST", ...options });
    if (talk !== own) return;
    show(answer, isSpoken);
    await speak(answer.say);
  } catch (error) {
    if (talk !== own) return;
    say(error.message, true);
    if (GONE.includes(error.code)) own.ended = error.code;
  }
  if (number !== latest) return;
  if (own.ended) await closeMicrophone();
  listen();
}

const takeText = (text) =>
  take({ headers: { "Content-Type": "application/json" }, body: JSON.stringify({ text }) }, false);

function takeSpeech(parts) {
  const form = new FormData();
  form.append("file", wav(parts, talk.microphone.rate), "turn.wav");
  return take({ body: form }, true);
}

function listen() {
  busy = false;
  turn = { parts: [], before: new Float32Array(0), quiet: 0, waited: 0 };
}

// Cuts turns out of what the microphone records: from the first sound to a pause.
function onSamples(samples) {
  if (busy || talk.ended) return;
  const { rate, level, pause, longest } = talk.microphone, seconds = samples.length / rate;
  const isLoud = Math.sqrt(samples.reduce((sum, value) => sum + value * value, 0) / samples.length) > level;
  if (!turn.parts.length) {
    if (isLoud) turn.parts = [turn.before, samples];
    turn.before = samples;
    turn.waited += seconds;
    if (!isLoud && turn.waited >= talk.timeout) takeText("");
    return;
  }
  turn.parts.push(samples);
  turn.quiet = isLoud ? 0 : turn.quiet + seconds;
  const count = turn.parts.reduce((sum, part) => sum + part.length, 0);
  if (turn.quiet >= pause || count >= longest * rate) takeSpeech(turn.parts);
}

async function closeMicrophone() {
  const closing = release;
  release = null;
  $("microphone").setAttribute("aria-pressed", "false");
  if (closing) await closing();
}

async function toggleMicrophone() {
  if (release) return closeMicrophone();
  speaking?.();
  if (!busy) listen();
  $("microphone").disabled = true;
  try {
    release = await openMicrophone(talk.microphone.rate, onSamples);
    $("microphone").setAttribute("aria-pressed", "true");
  } finally {
    $("microphone").disabled = false;
  }
}

async function begin() {
  const number = ++latest;
  speaking?.();
  if (talk) leave();
  talk = await request(ROUTE, { method: "POST" });
  $("name").textContent = talk.dialogue;
  $("microphone").hidden = !talk.microphone;
  $("turns").replaceChildren();
  busy = true;
  show(talk, false);
  await speak(talk.say);
  if (number === latest) listen();
}

// Ends the conversation on the service, so that it makes room for others.
const leave = () => talk && !talk.ended && fetch(`${ROUTE}/${talk.id}`, { method: "DELETE", keepalive: true });

async function start() {
  const { data } = await request("/v1/models");
  const models = await Promise.all(data.map(({ id }) => request(`/v1/models/${encodeURIComponent(id)}`)));
  voice = models.find((model) => model.task === "synthesize");
  await begin();
}

const failed = (error) => say(error.message, true);
$("say").addEventListener("submit", (event) => {
  event.preventDefault();
  showTurn("user", $("text").value);
  takeText($("text").value);
  $("text").value = "";
});
$("microphone").addEventListener("click", () =>
  toggleMicrophone().catch((error) => say(`no microphone: ${error.message}`, true)));
$("interrupt").addEventListener("click", () => speaking?.());
$("again").addEventListener("click", () => begin().catch(failed));
addEventListener("pagehide", leave);
addEventListener("DOMContentLoaded", () => start().catch(failed));

"use strict";

const RATE = 16000;          // Hz that the microphone is taken at
const LIVE_PAUSE = 700;      // ms between two transcripts of what is being said
const LIVE_MOST = 20;        // seconds after which what was said is settled and not heard again
const FRAME_WIDTH = 2;       // pixels
const $ = (id) => document.getElementById(id);

function say(text, isError = false) {
  $("status").textContent = text;
  $("status").className = isError ? "error" : "";
}

async function post(path, audio, fields = []) {
  const form = new FormData();
  for (const [name, value] of fields) form.append(name, value);
  form.append("file", audio, audio.name || "recording.wav");
  const response = await fetch(path, { method: "POST", body: form });
  const body = await response.json();
  if (!response.ok) throw new Error(body.error.message);
  return body;
}

let route = "/v1/audio/transcriptions";
const transcribe = (audio) =>
  post(route, audio, [["response_format", "verbose_json"], ["timestamp_granularities[]", "word"]]);

function showText(settled, live = "") {
  const part = document.createElement("span");
  part.className = "live";
  part.textContent = live;
  $("transcript").replaceChildren(settled + (settled && live ? " " : ""), part);
}

function showWords(words) {
  $("words-title").hidden = !words.length;
  $("words").replaceChildren(...words.map((each) => {
    const word = document.createElement("span");
    const times = document.createElement("small");
    times.textContent = `${each.start.toFixed(2)}–${each.end.toFixed(2)}`;
    word.append(each.word, times);
    return word;
  }));
}

function showAlternatives(segments) {
  const rows = [];
  for (const segment of segments) {
    const title = document.createElement("h2");
    title.textContent = `What else it may be, ${segment.start.toFixed(1)}–${segment.end.toFixed(1)} s`;
    const list = document.createElement("ol");
    for (const text of segment.texts) {
      const item = document.createElement("li");
      item.textContent = text;
      list.append(item);
    }
    rows.push(title, list);
  }
  $("alternatives").replaceChildren(...rows);
}

function draw(mel, words) {
  const canvas = $("mel"), labels = 34, bin = 2;
  canvas.width = Math.max(mel.frames * FRAME_WIDTH, 1);
  canvas.height = mel.bins * bin + labels;
  const context = canvas.getContext("2d");
  const shades = Uint8Array.from(atob(mel.shades), (character) => character.charCodeAt(0));
  const image = context.createImageData(canvas.width, mel.bins * bin);
  for (let y = 0; y < image.height; y++) {
    const row = mel.bins - 1 - Math.floor(y / bin);
    for (let x = 0; x < image.width; x++) {
      const shade = shades[Math.floor(x / FRAME_WIDTH) * mel.bins + row], at = 4 * (y * image.width + x);
      image.data[at] = shade;
      image.data[at + 1] = shade * shade / 320;
      image.data[at + 2] = 60 + shade / 3;
      image.data[at + 3] = 255;
    }
  }
  context.putImageData(image, 0, 0);
  const scale = canvas.width / mel.seconds;
  context.font = "12px system-ui, sans-serif";
  context.fillStyle = getComputedStyle(document.body).color;
  context.strokeStyle = "#2a6";
  words.forEach((each, number) => {
    const x = each.start * scale;
    context.beginPath();
    context.moveTo(x, 0);
    context.lineTo(x, mel.bins * bin);
    context.stroke();
    context.fillText(each.word, x, mel.bins * bin + 14 + 15 * (number % 2));
  });
}

async function show(audio) {
  $("player").src = URL.createObjectURL(audio);
  $("player").hidden = false;
  say("listening ...");
  const began = performance.now();
  try {
    const heard = await transcribe(audio);
    const words = heard.words || [];
    showText(heard.text);
    showWords(words);
    showAlternatives(heard.alternatives || []);
    const seconds = (performance.now() - began) / 1000;
    say(`${heard.duration.toFixed(1)} s of audio in ${seconds.toFixed(2)} s`);
    $("result").hidden = false;
    draw(await post("/page/log-mel", audio), words);
  } catch (error) {
    say(error.message, true);
  }
}

function wav(parts) {
  const count = parts.reduce((sum, part) => sum + part.length, 0);
  const view = new DataView(new ArrayBuffer(44 + 2 * count));
  const text = (at, value) => [...value].forEach((letter, i) => view.setUint8(at + i, letter.charCodeAt(0)));
  text(0, "RIFF"); view.setUint32(4, 36 + 2 * count, true); text(8, "WAVEfmt ");
  view.setUint32(16, 16, true); view.setUint16(20, 1, true); view.setUint16(22, 1, true);
  view.setUint32(24, RATE, true); view.setUint32(28, 2 * RATE, true);
  view.setUint16(32, 2, true); view.setUint16(34, 16, true);
  text(36, "data"); view.setUint32(40, 2 * count, true);
  let at = 44;
  for (const part of parts) {
    for (const value of part) {
      view.setInt16(at, Math.max(-1, Math.min(1, value)) * 32767, true);
      at += 2;
    }
  }
  return new Blob([view.buffer], { type: "audio/wav" });
}

const length = (parts) => parts.reduce((sum, part) => sum + part.length, 0) / RATE;

function without(parts, seconds) {
  let drop = Math.round(seconds * RATE);
  const rest = [];
  for (const part of parts) {
    if (drop < part.length) rest.push(drop > 0 ? part.subarray(drop) : part);
    drop -= part.length;
  }
  return rest;
}

let recording = null;

async function start() {
  const stream = await navigator.mediaDevices.getUserMedia({ audio: true });
  const context = new AudioContext({ sampleRate: RATE });
  await context.audioWorklet.addModule("/recorder.js");
  const node = new AudioWorkletNode(context, "recorder");
  const now = recording = { stream, context, all: [], pending: [], settled: "", timer: 0 };
  node.port.onmessage = ({ data }) => {
    now.all.push(data);
    now.pending.push(data);
    $("seconds").textContent = `${length(now.all).toFixed(1)} s`;
  };
  context.createMediaStreamSource(stream).connect(node);
  $("record").setAttribute("aria-pressed", "true");
  $("record").textContent = "Stop";
  $("result").hidden = true;
  showText("");
  say("speak ...");
  now.timer = setTimeout(() => listen(now), LIVE_PAUSE);
}

async function listen(now) {
  if (recording !== now) return;
  const parts = [...now.pending];
  try {
    if (length(parts) > 0.3) {
      const heard = await transcribe(wav(parts));
      if (recording !== now) return;
      showText(now.settled, heard.text);
      if (length(parts) > LIVE_MOST) {
        // Whole phrases are settled; the last one may go on.
        const done = heard.segments.length > 1 ? heard.segments.slice(0, -1) : heard.segments;
        now.settled = [now.settled, ...done.map((each) => each.text)].filter(Boolean).join(" ");
        const end = done.length ? done[done.length - 1].end : length(parts);
        now.pending = without(now.pending, end);
      }
    }
  } catch (error) {
    say(error.message, true);
  }
  now.timer = setTimeout(() => listen(now), LIVE_PAUSE);
}

async function stop() {
  const now = recording;
  recording = null;
  clearTimeout(now.timer);
  now.stream.getTracks().forEach((track) => track.stop());
  await now.context.close();
  $("record").setAttribute("aria-pressed", "false");
  $("record").textContent = "Record";
  if (now.all.length) await show(wav(now.all));
}

$("record").addEventListener("click", () =>
  (recording ? stop() : start()).catch((error) => say(`no microphone: ${error.message}`, true)));
$("file").addEventListener("change", () => {
  if ($("file").files.length) show($("file").files[0]);
});

(async () => {
  const { data } = await (await fetch("/v1/models")).json();
  const { card } = await (await fetch(`/v1/models/${encodeURIComponent(data[0].id)}`)).json();
  $("model").textContent = data[0].id;
  if (card.to === "translate") route = "/v1/audio/translations";
  $("card").replaceChildren(...Object.entries(card).map(([name, value]) => {
    const row = document.createElement("tr"), key = document.createElement("th"), cell = document.createElement("td");
    key.textContent = name;
    cell.textContent = typeof value === "number" ? value.toLocaleString("en") : value;
    row.append(key, cell);
    return row;
  }));
})().catch((error) => say(error.message, true));

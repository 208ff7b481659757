"use strict";

// Transcription: a file or the microphone, the transcript, its words and the features.

const RATE = 16000;          // Hz that the microphone is taken at
const LIVE_PAUSE = 700;      // ms between two transcripts of what is being said, by models that cannot stream
const LIVE_MOST = 20;        // seconds after which what was said is settled and not transcribed again

let streams = false;         // whether the model transcribes audio as it arrives
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
    draw($("mel"), await post("/page/log-mel", audio), words);
  } catch (error) {
    say(error.message, true);
  }
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

async function record() {
  const now = { all: [], pending: [], settled: "", timer: 0, send: null };
  now.release = await openMicrophone(RATE, (samples) => {
    now.all.push(samples);
    if (now.send) now.send(samples);
    else now.pending.push(samples);
    $("seconds").textContent = `${length(now.all).toFixed(1)} s`;
  });
  recording = now;
  if (streams) {
    now.send = await live(now);
    now.pending.splice(0).forEach(now.send);
  }
  $("record").setAttribute("aria-pressed", "true");
  $("record").textContent = "Stop";
  $("result").hidden = true;
  showText("");
  say("speak ...");
  if (!streams) now.timer = setTimeout(() => listen(now), LIVE_PAUSE);
}

// Opens a live stream (Vosk's protocol); returns what sends it samples. Each message has one answer.
function live(now) {
  const socket = new WebSocket(location.origin.replace(/^http/, "ws") + "/");
  now.close = () => socket.close();
  socket.onmessage = ({ data }) => {
    const answer = JSON.parse(data);
    if (answer.error) return say(answer.error.message, true);
    if (answer.text) now.settled = [now.settled, answer.text].filter(Boolean).join(" ");
    if (recording === now) showText(now.settled, answer.partial || "");
  };
  return new Promise((resolve, reject) => {
    socket.onerror = () => reject(new Error("the service accepts no live stream now"));
    socket.onopen = () => {
      socket.send(JSON.stringify({ config: { sample_rate: RATE } }));
      resolve((samples) => {
        if (socket.readyState === WebSocket.OPEN) socket.send(int16(samples));
      });
    };
  });
}

const int16 = (samples) => Int16Array.from(samples, (value) => Math.max(-1, Math.min(1, value)) * 32767);

async function listen(now) {
  if (recording !== now) return;
  const parts = [...now.pending];
  try {
    if (length(parts) > 0.3) {
      const heard = await transcribe(wav(parts, RATE));
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
  if (now.close) now.close();
  await now.release();
  $("record").setAttribute("aria-pressed", "false");
  $("record").textContent = "Record";
  if (now.all.length) await show(wav(now.all, RATE));
}

$("record").addEventListener("click", () =>
  (recording ? stop() : record()).catch((error) => say(`no microphone: ${error.message}`, true)));
$("file").addEventListener("change", () => {
  if ($("file").files.length) show($("file").files[0]);
});

function showTranscriber(model) {
  route = model.route;
  streams = model.streams;
  $("transcriber").hidden = false;
}

"use strict";

// Synthesis: a text, a voice and a speed; the speech, played as it arrives, and its mel spectrogram.

const WAV_HEADER = 44;       // bytes
const LEAD = 0.05;           // seconds from the arrival of samples to their playback, where nothing plays yet

let voice = null, speaking = null, playback = null;

const told = (text, isError = false) => say(text, isError, "speech-status");

function joined(parts) {
  const whole = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  parts.reduce((at, part) => { whole.set(part, at); return at + part.length; }, 0);
  return whole;
}

// Plays a wav file while it arrives: the browser's own player wants the whole.
class Playback {
  constructor() {
    this.context = null;
    this.rest = new Uint8Array(0);
    this.end = 0;
  }

  push(part) {
    let bytes = joined([this.rest, part]);
    if (!this.context && bytes.length >= WAV_HEADER) {
      this.context = new AudioContext({ sampleRate: new DataView(bytes.buffer).getUint32(24, true) });
      bytes = bytes.slice(WAV_HEADER);
    }
    const count = this.context ? bytes.length >> 1 : 0;
    this.rest = bytes.slice(2 * count);
    if (!count) return;
    const buffer = this.context.createBuffer(1, count, this.context.sampleRate), view = new DataView(bytes.buffer);
    const samples = buffer.getChannelData(0).map((_, place) => view.getInt16(2 * place, true) / 32768);
    buffer.copyToChannel(samples, 0);
    const source = this.context.createBufferSource();
    source.buffer = buffer;
    source.connect(this.context.destination);
    this.end = Math.max(this.end, this.context.currentTime + LEAD);
    source.start(this.end);
    this.end += buffer.duration;
  }

  stop() {
    if (this.context && this.context.state !== "closed") this.context.close();
  }
}

// The service sends audio before its length is known, so its header declares the longest possible file.
function withLengths(parts) {
  const wav = joined(parts), view = new DataView(wav.buffer);
  view.setUint32(4, wav.length - 8, true);
  view.setUint32(WAV_HEADER - 4, wav.length - WAV_HEADER, true);
  return [new Blob([wav], { type: "audio/wav" }), (wav.length - WAV_HEADER) / view.getUint32(28, true)];
}

async function speak() {
  const now = speaking = new AbortController(), began = performance.now(), parts = [];
  const since = () => ((performance.now() - began) / 1000).toFixed(2);
  silence();
  const player = playback = new Playback();
  $("speak").disabled = true;
  $("quiet").disabled = false;
  $("speech-result").hidden = true;
  told("speaking ...");
  try {
    const response = await fetch(voice.route, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({
        model: voice.id, input: $("text").value, voice: $("speaker").value, speed: Number($("speed").value),
        response_format: "wav",
      }),
      signal: now.signal,
    });
    if (!response.ok) throw new Error((await response.json()).error.message);
    let first = null;
    for (const reader = response.body.getReader(); ;) {
      const { done, value } = await reader.read();
      if (done) break;
      parts.push(value);
      player.push(value);
      first ??= since();
      told(`first audio after ${first} s ...`);
    }
    const [audio, seconds] = withLengths(parts);
    told(`${seconds.toFixed(1)} s of speech in ${since()} s, the first after ${first} s`);
    URL.revokeObjectURL($("speech").src);
    $("speech").src = $("download").href = URL.createObjectURL(audio);
    $("download").download = "speech.wav";
    $("speech").hidden = $("download").hidden = false;
    draw($("speech-mel"), await post("/page/speech/log-mel", audio), []);
    $("speech-result").hidden = false;
  } catch (error) {
    told(error.name === "AbortError" ? "stopped" : error.message, error.name !== "AbortError");
  } finally {
    $("speak").disabled = false;
  }
}

function silence() {
  playback?.stop();
  $("speech").pause();
}

function count() {
  $("characters").textContent = `${[...$("text").value].length} of ${voice.max_characters} characters`;
}

function showVoice(model) {
  voice = model;
  $("speaker").replaceChildren(...model.voices.map((name) => new Option(name, name)));
  [$("speed").min, $("speed").max] = model.speed;
  $("voice").hidden = false;
  count();
}

$("voice").addEventListener("submit", (event) => {
  event.preventDefault();
  speak();
});
$("text").addEventListener("input", count);
$("quiet").addEventListener("click", () => {
  speaking.abort();
  silence();
  $("quiet").disabled = true;
});
$("speech").addEventListener("play", () => playback.stop());

"use strict";

// Synthesis: a text, a voice and a speed; the speech, and its mel spectrogram.

const WAV_HEADER = 44;       // bytes

let voice = null, speaking = null;

const told = (text, isError = false) => say(text, isError, "speech-status");

// The service sends audio before its length is known, so its header declares the longest possible file.
async function withLengths(parts) {
  const wav = await new Blob(parts).arrayBuffer(), view = new DataView(wav);
  view.setUint32(4, wav.byteLength - 8, true);
  view.setUint32(WAV_HEADER - 4, wav.byteLength - WAV_HEADER, true);
  return [new Blob([wav], { type: "audio/wav" }), (wav.byteLength - WAV_HEADER) / view.getUint32(28, true)];
}

async function speak() {
  const now = speaking = new AbortController(), began = performance.now(), parts = [];
  const since = () => ((performance.now() - began) / 1000).toFixed(2);
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
      first ??= since();
      told(`first audio after ${first} s ...`);
    }
    const [audio, seconds] = await withLengths(parts);
    told(`${seconds.toFixed(1)} s of speech in ${since()} s, the first after ${first} s`);
    URL.revokeObjectURL($("speech").src);
    $("speech").src = $("download").href = URL.createObjectURL(audio);
    $("download").download = "speech.wav";
    $("speech").hidden = $("download").hidden = false;
    $("speech").play().catch(() => {});  // some browsers want a click first
    draw($("speech-mel"), await post("/page/speech/log-mel", audio), []);
    $("speech-result").hidden = false;
  } catch (error) {
    told(error.name === "AbortError" ? "stopped" : error.message, error.name !== "AbortError");
  } finally {
    $("speak").disabled = false;
    $("quiet").disabled = true;
  }
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
$("quiet").addEventListener("click", () => speaking.abort());

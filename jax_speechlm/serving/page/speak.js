"use strict";

// Synthesis: a text, a voice and a speed; the speech, played as it arrives, and its mel spectrogram.

let voice = null, speaking = null, playback = null;

const told = (text, isError = false) => say(text, isError, "speech-status");

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
    let first = null;
    const fields = { model: voice.id, input: $("text").value, voice: $("speaker").value, speed: Number($("speed").value) };
    await fetchSpeech(voice.route, fields, now.signal, (part) => {
      parts.push(part);
      player.push(part);
      first ??= since();
      told(`first audio after ${first} s ...`);
    });
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

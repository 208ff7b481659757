"use strict";

// The microphone, wav files, and speech that is played while it arrives.

const WAV_HEADER = 44;       // bytes
const LEAD = 0.05;           // seconds from the arrival of samples to their playback, where nothing plays yet

// Opens the microphone; `take` gets samples in [-1, 1] at `rate` Hz. Returns what closes it.
async function openMicrophone(rate, take) {
  const context = new AudioContext({ sampleRate: rate });
  await context.audioWorklet.addModule("/recorder.js");  // before it is open, so that nothing of it is lost
  const stream = await navigator.mediaDevices.getUserMedia({ audio: true }).catch(async (error) => {
    await context.close();
    throw error;
  });
  const node = new AudioWorkletNode(context, "recorder");
  node.port.onmessage = ({ data }) => take(data);
  context.createMediaStreamSource(stream).connect(node);
  return async () => {
    node.port.onmessage = null;
    stream.getTracks().forEach((track) => track.stop());
    await context.close();
  };
}

function wav(parts, rate) {
  const count = parts.reduce((sum, part) => sum + part.length, 0);
  const view = new DataView(new ArrayBuffer(44 + 2 * count));
  const text = (at, value) => [...value].forEach((letter, i) => view.setUint8(at + i, letter.charCodeAt(0)));
  text(0, "RIFF"); view.setUint32(4, 36 + 2 * count, true); text(8, "WAVEfmt ");
  view.setUint32(16, 16, true); view.setUint16(20, 1, true); view.setUint16(22, 1, true);
  view.setUint32(24, rate, true); view.setUint32(28, 2 * rate, true);
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

// Requests speech as a wav file; `take` gets its parts as they arrive.
async function fetchSpeech(route, fields, signal, take) {
  const response = await fetch(route, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ ...fields, response_format: "wav" }),
    signal,
  });
  if (!response.ok) throw new Error((await response.json()).error.message);
  for (const reader = response.body.getReader(); ;) {
    const { done, value } = await reader.read();
    if (done) return;
    take(value);
  }
}

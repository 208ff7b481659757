// Runs beside the audio: hands the microphone's samples over, a few thousand at a time.
class Recorder extends AudioWorkletProcessor {
  constructor() {
    super();
    this.held = [];
    this.count = 0;
  }

  process(inputs) {
    const samples = inputs[0][0];
    if (samples) {
      this.held.push(samples.slice());
      this.count += samples.length;
      if (this.count >= 2048) {
        const joined = new Float32Array(this.count);
        let place = 0;
        for (const part of this.held) { joined.set(part, place); place += part.length; }
        this.port.postMessage(joined, [joined.buffer]);
        this.held = [];
        this.count = 0;
      }
    }
    return true;
  }
}
registerProcessor("recorder", Recorder);

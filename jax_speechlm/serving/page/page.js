"use strict";

const FRAME_WIDTH = 2;       // pixels
function draw(canvas, mel, words) {
  const labels = words.length ? 34 : 0, bin = 2;
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

function showCards(models) {
  const table = (model) => {
    const title = document.createElement("h2"), rows = document.createElement("table");
    title.textContent = models.length > 1 ? `Model ${model.id}` : "Model";
    rows.className = "card";
    rows.replaceChildren(...Object.entries(model.card).map(([name, value]) => {
      const row = document.createElement("tr"), key = document.createElement("th"), cell = document.createElement("td");
      key.textContent = name;
      cell.textContent = typeof value === "number" ? value.toLocaleString("en") : value;
      row.append(key, cell);
      return row;
    }));
    return [title, rows];
  };
  $("card").replaceChildren(...models.flatMap(table));
}

async function start() {
  const { data } = await (await fetch("/v1/models")).json();
  const models = await Promise.all(data.map(async ({ id }) =>
    (await fetch(`/v1/models/${encodeURIComponent(id)}`)).json()));
  $("model").textContent = models.map((model) => model.id).join(", ");
  for (const model of models) (model.task === "synthesize" ? showVoice : showTranscriber)(model);
  showCards(models);
}

addEventListener("DOMContentLoaded", () => start().catch((error) => { $("model").textContent = error.message; }));

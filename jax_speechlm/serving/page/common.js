"use strict";

// What all pages use: elements, the status line, requests.

const $ = (id) => document.getElementById(id);

function say(text, isError = false, id = "status") {
  $(id).textContent = text;
  $(id).className = isError ? "status error" : "status";
}

async function post(path, audio, fields = []) {
  const form = new FormData();
  for (const [name, value] of fields) form.append(name, value);
  form.append("file", audio, audio.name || "recording.wav");
  return request(path, { method: "POST", body: form });
}

async function request(path, options = {}) {
  const response = await fetch(path, options), body = await response.json();
  if (!response.ok) throw Object.assign(new Error(body.error.message), { code: body.error.code });
  return body;
}

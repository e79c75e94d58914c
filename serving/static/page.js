// Replaces the changing part of an experiment's page, and acts through the API. Nothing else.
"use strict";

const content = document.getElementById("content");
const form = document.getElementById("act");
const REFRESH_MS = 3000;

function allow() {
  const live = document.getElementById("live");
  if (!form || !live) return;
  const actions = live.dataset.actions.split(" ");
  for (const button of form.querySelectorAll("button")) button.hidden = !actions.includes(button.value);
}

async function refresh() {
  try {
    const answer = await fetch(content.dataset.refresh, { headers: { Accept: "text/html" } });
    if (answer.status === 401) return window.location.reload();
    if (answer.ok) {
      content.innerHTML = await answer.text();
      allow();
    }
  } catch (error) {
    console.warn("not refreshed:", error);
  }
}

async function act(event) {
  event.preventDefault();
  const action = event.submitter.value;
  const said = document.getElementById("said");
  const reason = form.elements.reason.value.trim();
  if (!reason) return;
  const drastic = ["promote", "rollback", "stop", "restart"].includes(action);
  if (drastic && !window.confirm(`${action} ${form.dataset.key}?`)) return;
  const answer = await fetch(`/v1/experiments/${encodeURIComponent(form.dataset.key)}/${action}`, {
    method: "POST",
    headers: { "Content-Type": "application/json", "Idempotency-Key": crypto.randomUUID() },
    body: JSON.stringify({ reason }),
  });
  const body = await answer.json();
  said.textContent = answer.ok ? `${action}: now ${body.state}` : body.detail;
  said.className = answer.ok ? "" : "alarm";
  if (answer.ok) form.elements.reason.value = "";
  await refresh();
}

if (content) {
  allow();
  setInterval(refresh, REFRESH_MS);
}
if (form) form.addEventListener("submit", act);

"use strict";
// Renews [data-live] parts, shows times in the reader's zone, and lets "/" go to the search. The pages work without it.

const every = Number(document.body.dataset.every || 0) * 1000;
const pulse = document.getElementById("pulse");
const pause = document.getElementById("pause");
const zone = document.getElementById("zone");

// A form is in use from the first change until it is sent, also while the focus is elsewhere.
const isInUse = () =>
  document.querySelector("form :focus, details[open]") !== null ||
  [...document.querySelectorAll("form textarea, form input[name=q]")].some((field) => field.value !== field.defaultValue);
const isPaused = () => pause !== null && pause.getAttribute("aria-pressed") === "true";

function say(text) {
  if (pulse && pulse.textContent !== text) pulse.textContent = text;
}

async function renew() {
  if (document.hidden) return;
  if (isPaused()) return say("paused");
  if (isInUse()) return say("paused while a form is in use");
  const answer = await fetch(location.href, { headers: { Accept: "text/html" }, redirect: "error" });
  if (!answer.ok) return say(`not renewed: the server answered ${answer.status}`);
  const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
  if (isInUse() || isPaused()) return;
  for (const part of document.querySelectorAll("[data-live]")) {
    const renewed = fresh.getElementById(part.id);
    // What has the focus stays: a keyboard would lose its place.
    if (renewed && !part.contains(document.activeElement)) part.replaceWith(document.adoptNode(renewed));
  }
  showTimes();
  document.body.dataset.renewed = String(Number(document.body.dataset.renewed || 0) + 1);
  say("renewed every few seconds");
}

function remembered() {
  try {
    return localStorage.getItem("safeagent-zone") === "local";
  } catch {
    return false;
  }
}

let isLocal = remembered();

function showTimes() {
  for (const time of document.querySelectorAll("time")) {
    const moment = new Date(time.dateTime);
    const utc = `${moment.toISOString().slice(0, 19).replace("T", " ")}`;
    const local = `${moment.toLocaleDateString("sv")} ${moment.toLocaleTimeString("sv")}`;
    time.textContent = isLocal ? local : utc;
    time.title = isLocal ? `${utc} UTC` : `${local} where you are`;
  }
  const name = Intl.DateTimeFormat().resolvedOptions().timeZone;
  zone.textContent = isLocal ? `Times are ${name}` : "Times are UTC";
  zone.setAttribute("aria-pressed", String(isLocal));
}

zone.addEventListener("click", () => {
  isLocal = !isLocal;
  try {
    localStorage.setItem("safeagent-zone", isLocal ? "local" : "utc");
  } catch {
    // Without storage the choice lasts until the next page.
  }
  showTimes();
});

if (pause) {
  pause.addEventListener("click", () => {
    pause.setAttribute("aria-pressed", String(!isPaused()));
    pause.textContent = isPaused() ? "Go on" : "Pause";
    say(isPaused() ? "paused" : "");
  });
}

document.addEventListener("keydown", (event) => {
  const isTyping = event.target instanceof Element && event.target.closest("input, textarea, select");
  if (event.key !== "/" || isTyping || event.ctrlKey || event.metaKey || event.altKey) return;
  const search = document.querySelector(".find input");
  if (search) {
    event.preventDefault();
    search.focus();
  }
});

showTimes();
if (every) {
  const again = () => renew().catch(() => say("not renewed: the server does not answer"));
  setInterval(again, every);
  document.addEventListener("visibilitychange", again);
}

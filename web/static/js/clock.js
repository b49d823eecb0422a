// Moments in the reader's own words and time zone, and durations that go on. Without this script pages show UTC.

const TICK_MILLISECONDS = 1000;
const relative = new Intl.RelativeTimeFormat("en", { numeric: "auto", style: "narrow" });
const full = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });
const clock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit", hour12: false });

export function keepTime() {
  tell();
  setInterval(tell, TICK_MILLISECONDS);
  document.addEventListener("htmx:afterSwap", tell);
  document.addEventListener("htmx:oobAfterSwap", tell);
}

function tell() {
  for (const element of document.querySelectorAll("time[data-when]")) {
    const moment = new Date(element.dateTime);
    set(element, ago((Date.now() - moment) / 1000));
    element.title = full.format(moment);
  }
  for (const element of document.querySelectorAll("time[data-clock]")) set(element, clock.format(new Date(element.dateTime)));
  for (const element of document.querySelectorAll("[data-since]")) {
    set(element, duration(Math.max(Date.now() - new Date(element.dataset.since), 0) / 1000));
  }
}

function set(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function ago(seconds) {
  if (seconds < 5) return "just now";
  for (const [unit, length, until] of [["second", 1, 60], ["minute", 60, 3600], ["hour", 3600, 86400], ["day", 86400, 86400 * 30]]) {
    if (seconds < until) return relative.format(-Math.floor(seconds / length), unit);
  }
  return full.format(new Date(Date.now() - seconds * 1000));
}

function duration(seconds) {
  if (seconds < 60) return `${Math.floor(seconds)} s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return `${minutes} m ${String(Math.floor(seconds % 60)).padStart(2, "0")} s`;
  return `${Math.floor(minutes / 60)} h ${String(minutes % 60).padStart(2, "0")} m`;
}

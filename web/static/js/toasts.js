// What was just done or went wrong, shown for a moment. Answers of htmx send one by the header HX-Trigger:
// {"toast": {"kind": "good" | "bad", "text": "..."}}.

const SHOWN_MILLISECONDS = 6000;
const LEAVES_MILLISECONDS = 300;

export function serveToasts() {
  document.querySelectorAll(".toast").forEach(leaveLater);
  document.addEventListener("toast", (event) => toast(event.detail.text, event.detail.kind));
}

export function toast(text, kind = "good") {
  const element = document.createElement("p");
  element.className = `toast ${kind}`;
  element.textContent = text;
  document.getElementById("toasts")?.append(element);
  leaveLater(element);
}

function leaveLater(element) {
  setTimeout(() => {
    element.classList.add("leaves");
    setTimeout(() => element.remove(), LEAVES_MILLISECONDS);
  }, SHOWN_MILLISECONDS);
}

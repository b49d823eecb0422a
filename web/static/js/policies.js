// The editor of a policy: a mistake that knows its line takes the reader there.

export function serveLines() {
  document.addEventListener("click", (event) => {
    const button = event.target.closest("[data-goes-to-line]");
    if (button) goTo(document.querySelector("textarea[name=policy]"), Number(button.dataset.goesToLine));
  });
}

function goTo(area, number) {
  const lines = area.value.split("\n");
  const start = lines.slice(0, number - 1).join("\n").length + (number > 1 ? 1 : 0);
  area.focus();
  area.setSelectionRange(start, start + lines[number - 1].length);
  area.scrollTop = (area.scrollHeight / lines.length) * Math.max(number - 4, 0);
}

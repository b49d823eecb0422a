// Bars by day: the one under the pointer, or which the arrow keys came to, is told below the picture. It stays told: were
// its words taken away as something else is pressed, that would move from under the pointer.

export function serveDays(figure) {
  const days = [...figure.querySelectorAll("g[data-says]")];
  const picture = figure.querySelector("svg");
  const says = figure.querySelector("output");
  let shown = -1;

  function show(at) {
    days[shown]?.classList.remove("shown");
    shown = Math.max(-1, Math.min(at, days.length - 1));
    days[shown]?.classList.add("shown");
    says.textContent = days[shown]?.dataset.says ?? "";
  }

  days.forEach((day, at) => day.addEventListener("pointerenter", () => show(at)));
  picture.addEventListener("keydown", (event) => {
    const last = days.length - 1;
    const from = shown < 0 ? last + 1 : shown;
    const to = { ArrowLeft: Math.max(from - 1, 0), ArrowRight: Math.min(from + 1, last), Home: 0, End: last }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    show(to);
  });
}

// Rows of a list that are ticked. The list is live: what is ticked stays so when its row comes anew, and also when newer rows
// push it off the page. Without this script the same checkboxes are a plain form's, and the style alone shows its bar.

const BOXES = 'input[type="checkbox"][name="id"][form="chosen"]';

export function serveChoosing() {
  const ids = new Set([...document.querySelectorAll(`${BOXES}:checked`)].map((box) => box.value));
  document.addEventListener("change", ({ target }) => {
    if (target.matches(BOXES)) tick(ids, [target], target.checked);
    else if (target.matches("[data-ticks-all]")) tick(ids, document.querySelectorAll(BOXES), target.checked);
    else return;
    show(ids);
  });
  document.addEventListener("reset", (event) => {
    if (event.target.id !== "chosen") return;
    event.preventDefault();
    ids.clear();
    show(ids);
  });
  document.addEventListener("htmx:afterSwap", () => show(ids));
  show(ids);
}

function tick(ids, boxes, checked) {
  for (const box of boxes) checked ? ids.add(box.value) : ids.delete(box.value);
}

function show(ids) {
  const form = document.querySelector("form#chosen");
  if (!form) return;
  const boxes = [...document.querySelectorAll(BOXES)];
  for (const box of boxes) box.checked = ids.has(box.value);
  const all = document.querySelector("[data-ticks-all]");
  all.checked = boxes.length > 0 && boxes.every((box) => box.checked);
  all.indeterminate = !all.checked && boxes.some((box) => box.checked);
  const here = new Set(boxes.map((box) => box.value));
  const elsewhere = [...ids].filter((id) => !here.has(id));
  form.classList.toggle("any", ids.size > 0);
  form.querySelector("output").textContent = `${ids.size} selected${elsewhere.length ? `, ${elsewhere.length} not on this page` : ""}`;
  form.querySelector("[data-elsewhere]").replaceChildren(...elsewhere.map(hidden));
}

function hidden(id) {
  return Object.assign(document.createElement("input"), { type: "hidden", name: "id", value: id });
}

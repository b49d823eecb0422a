// Sends a dropped or chosen file as it is, and says how far it is. What the server refuses is told in its words.

export function serveUpload(area) {
  const input = area.querySelector("input[type=file]");
  input.addEventListener("change", () => input.files[0] && send(area, input.files[0]));
  for (const type of ["dragenter", "dragover"]) {
    area.addEventListener(type, (event) => {
      event.preventDefault();
      area.dataset.over = "";
    });
  }
  for (const type of ["dragleave", "drop"]) area.addEventListener(type, () => delete area.dataset.over);
  area.addEventListener("drop", (event) => {
    event.preventDefault();
    if (event.dataTransfer.files[0]) send(area, event.dataTransfer.files[0]);
  });
}

function send(area, file) {
  if (file.size > Number(area.dataset.most)) return refuse(area, `${file.name} is larger than a file may be.`);
  show(area, file.name, 0);
  const form = new FormData();
  form.append("purpose", "batch");
  form.append("file", file);
  const request = new XMLHttpRequest(); // fetch tells nothing of what it has sent
  request.upload.onprogress = (event) => show(area, file.name, event.loaded / event.total);
  request.onload = () => answered(area, file, request);
  request.onerror = () => refuse(area, "The connection broke off. Send the file again.");
  request.open("POST", area.dataset.upload);
  request.setRequestHeader("X-CSRFToken", area.dataset.token);
  request.send(form);
}

function answered(area, file, request) {
  if (request.status !== 201) return refuse(area, problemOf(request));
  show(area, file.name, 1);
  if (area.dataset.then === "reload") return location.reload();
  const { id } = JSON.parse(request.responseText);
  const select = document.querySelector(area.dataset.then);
  select.prepend(new Option(`${file.name} · just uploaded`, id, true, true));
  select.dispatchEvent(new Event("change", { bubbles: true }));
}

function problemOf(request) {
  try {
    const { detail } = JSON.parse(request.responseText);
    return `${detail[0].toUpperCase()}${detail.slice(1)}.`;
  } catch {
    return `The file was not taken (${request.status}). Reload the page, and send it again.`;
  }
}

function show(area, name, share) {
  area.querySelector("[data-upload-error]").hidden = true;
  area.querySelector(".upload-state").hidden = false;
  area.querySelector("[data-upload-name]").textContent = name;
  area.querySelector("[data-upload-share]").textContent = share < 1 ? `${Math.floor(share * 100)} %` : "is uploaded";
  area.querySelector(".progress").setAttribute("aria-valuenow", Math.round(share * 100));
  area.querySelector(".progress .bar").setAttribute("width", share * 100);
}

function refuse(area, words) {
  const error = area.querySelector("[data-upload-error]");
  area.querySelector(".upload-state").hidden = true;
  area.querySelector("input[type=file]").value = "";
  error.textContent = words;
  error.hidden = false;
}

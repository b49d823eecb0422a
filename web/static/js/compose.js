// The form for a new job: chat or prompt, and as many messages as wanted.

export function serveCompose(form) {
  form.addEventListener("change", (event) => {
    if (event.target.name === "mode") form.dataset.mode = event.target.value;
  });
  form.addEventListener("click", (event) => {
    if (event.target.closest("[data-add-message]")) addMessage(form);
    const remove = event.target.closest("[data-remove-message]");
    if (remove) removeMessage(form, remove.closest(".message"));
  });
  form.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
  });
  form.querySelector("[aria-invalid=true]")?.focus();
}

function addMessage(form) {
  const messages = form.querySelector("[data-messages]");
  const last = messages.querySelector(".message:last-child select");
  messages.append(form.querySelector("template").content.cloneNode(true));
  const added = messages.lastElementChild;
  if (last?.value === "user") added.querySelector("select").value = "assistant";
  added.querySelector("textarea").focus();
}

function removeMessage(form, message) {
  const neighbour = message.nextElementSibling ?? message.previousElementSibling;
  message.remove();
  (neighbour?.querySelector("textarea") ?? form.querySelector("[data-add-message]")).focus();
}

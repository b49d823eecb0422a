// A fold that the reader opened stays open when htmx brings its new content.

export function keepFoldsOpen() {
  document.addEventListener("htmx:oobBeforeSwap", (event) => {
    const incoming = event.detail.fragment;
    for (const fold of event.detail.target.querySelectorAll("details[open][id]")) open(incoming, fold.id);
    if (event.detail.target.matches("details[open][id]")) open(incoming, event.detail.target.id);
  });
}

function open(fragment, id) {
  const fold = fragment.querySelector(`#${CSS.escape(id)}`);
  if (fold) fold.open = true;
}

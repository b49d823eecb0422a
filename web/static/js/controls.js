// Small controls: the theme toggle, copy buttons, selects that submit their form. Listeners sit on the document, so that parts
// which htmx swaps in need no wiring.

const YEAR_SECONDS = 31536000;
const COPIED_MILLISECONDS = 1600;

export function serveThemeToggle() {
  document.addEventListener("click", (event) => {
    if (!event.target.closest("[data-theme-toggle]")) return;
    const theme = isDark() ? "light" : "dark";
    document.documentElement.dataset.theme = theme;
    // A cookie, so that the server sends the next page in the right colours from its first byte.
    document.cookie = `theme=${theme}; path=/; max-age=${YEAR_SECONDS}; samesite=lax`;
  });
}

function isDark() {
  const chosen = document.documentElement.dataset.theme;
  return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}

export function serveCopyButtons() {
  document.addEventListener("click", async (event) => {
    const button = event.target.closest("[data-copy]");
    if (!button) return;
    const label = button.querySelector("span");
    const before = label.textContent;
    label.textContent = (await copy(document.querySelector(button.dataset.copy).textContent.trim())) ? "Copied" : "Not copied";
    setTimeout(() => (label.textContent = before), COPIED_MILLISECONDS);
  });
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return copyBySelection(text); // no clipboard without https
  }
}

function copyBySelection(text) {
  const area = document.createElement("textarea");
  area.value = text;
  area.className = "visually-hidden";
  document.body.append(area);
  area.select();
  const copied = document.execCommand("copy");
  area.remove();
  return copied;
}

export function serveSubmittingSelects() {
  document.addEventListener("change", (event) => {
    if (event.target.matches("select[data-submits]")) event.target.form.requestSubmit();
  });
}

export function serveDialogs() {
  document.addEventListener("click", (event) => {
    const opener = event.target.closest("[data-opens]");
    if (opener) document.querySelector(opener.dataset.opens).showModal();
    if (event.target.closest("[data-closes]")) event.target.closest("dialog").close();
    for (const fold of document.querySelectorAll("details:is(.menu-fold, .account)[open]")) {
      if (!fold.contains(event.target)) fold.open = false;
    }
  });
}

// What a page asks again and again must not take a question away that its reader is answering: neither does it ask
// meanwhile, nor does an answer count that was on its way.
export function serveHeldPolls() {
  const held = (element) =>
    element.getAttribute?.("hx-trigger")?.includes("every") && document.querySelector("dialog[open], .live :focus");
  document.addEventListener("htmx:beforeRequest", (event) => {
    if (held(event.target)) event.preventDefault();
  });
  document.addEventListener("htmx:beforeSwap", (event) => {
    if (held(event.detail.requestConfig.elt)) event.detail.shouldSwap = false;
  });
}

// Tabs of one page, as the ARIA authoring practices have them: arrows go from one to the next, and show it.
export function serveTabs() {
  document.addEventListener("click", (event) => {
    const tab = event.target.closest("[role=tab]");
    if (tab) show(tab);
  });
  document.addEventListener("keydown", (event) => {
    const tab = event.target.closest?.("[role=tab]");
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!tab || !step) return;
    const tabs = [...tab.parentElement.querySelectorAll("[role=tab]")];
    const next = tabs[(tabs.indexOf(tab) + step + tabs.length) % tabs.length];
    show(next);
    next.focus();
  });
}

function show(chosen) {
  for (const tab of chosen.parentElement.querySelectorAll("[role=tab]")) {
    tab.setAttribute("aria-selected", String(tab === chosen));
    tab.tabIndex = tab === chosen ? 0 : -1;
    document.getElementById(tab.getAttribute("aria-controls")).hidden = tab !== chosen;
  }
}

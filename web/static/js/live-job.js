// Follows one job's stream and shows its tokens as they come. Model text only ever becomes text nodes.
//
// The browser's EventSource reconnects by itself and sends the last event's id, so the stream goes on at the exact token. Where
// the server answers with an error it gives up instead: then the stream is opened anew after the last id that we saw.
//
// A browser opens six connections to a server that speaks HTTP/1.1, for all its tabs together, and a stream keeps one. So a page
// has its stream only while it is seen; one that is shown again goes on where it was.

const REOPEN_MILLISECONDS = 2000;
const STATES = ["queued", "running", "requeued", "cancel_requested", "succeeded", "failed", "cancelled", "expired"];
const FINAL = new Set(["succeeded", "failed", "cancelled", "expired"]);

export function followLiveJob(element) {
  new LiveJob(element).follow();
}

class LiveJob {
  constructor(element) {
    this.output = new LiveOutput(element);
    this.address = element.dataset.stream;
    this.watch = element.dataset.watch ?? "#watch";
    this.lastId = null;
    this.source = null;
    this.ended = false;
  }

  follow() {
    document.addEventListener("visibilitychange", () => (document.hidden ? this.close() : this.open()));
    addEventListener("pagehide", () => this.close());
    this.open();
  }

  open() {
    if (this.source !== null || this.ended || document.hidden) return;
    const address = this.lastId === null ? this.address : `${this.address}?after=${encodeURIComponent(this.lastId)}`;
    this.source = new EventSource(address);
    this.on("output.delta", (delta) => this.output.add(delta));
    this.on("output.rewound", (event) => this.output.rewind(event.data.position));
    for (const state of STATES) this.on(`job.${state}`, () => this.changed(state));
    this.source.onerror = () => this.source.readyState === EventSource.CLOSED && this.reopen();
  }

  close() {
    this.source?.close();
    this.source = null;
  }

  end() {
    this.close();
    this.ended = true;
    this.output.end();
  }

  on(type, handle) {
    this.source.addEventListener(type, (event) => {
      this.lastId = event.lastEventId;
      handle(JSON.parse(event.data));
    });
  }

  changed(state) {
    if (FINAL.has(state)) this.end();
    // The rest of the page is the server's: htmx fetches what changed.
    htmx.trigger(this.watch, "job-changed");
  }

  reopen() {
    this.close();
    if (document.querySelector(this.watch).hasAttribute("data-final")) this.end();
    else setTimeout(() => this.open(), REOPEN_MILLISECONDS);
  }
}

// The text of all choices, kept by position so that a rewind can take back exactly what was lost.
class LiveOutput {
  constructor(element) {
    this.element = element;
    this.deltas = [];
    this.choices = new Map();
    this.tokens = 0;
    this.scope = element.closest("[data-answer]") ?? document;
    // The server's figure is a moment old: what was swapped in tells ours before it is painted.
    for (const swapped of ["htmx:oobAfterSwap", "htmx:afterSwap"]) {
      document.addEventListener(swapped, () => element.hasAttribute("data-live") && this.tellCount());
    }
  }

  add(delta) {
    if (delta.position !== this.deltas.length) return; // had already
    this.deltas.push(delta);
    this.show(delta);
    this.tokens += delta.token_id === null ? 0 : 1;
    this.tellCount();
  }

  rewind(position) {
    this.deltas.length = Math.min(position, this.deltas.length);
    for (const text of this.choices.values()) text.data = "";
    this.deltas.forEach((delta) => this.show(delta));
    this.tokens = this.deltas.filter((delta) => delta.token_id !== null).length;
    this.tellCount();
  }

  end() {
    this.element.removeAttribute("data-live");
    if (this.choices.size === 0) this.element.dataset.silent = "There is no output.";
  }

  show(delta) {
    if (!delta.text) return;
    this.element.removeAttribute("data-silent");
    this.textOf(delta.choice).appendData(delta.text);
  }

  textOf(choice) {
    if (!this.choices.has(choice)) {
      const container = document.createElement("div");
      container.className = "choice";
      const text = document.createTextNode("");
      container.append(text);
      const later = [...this.choices.keys()].filter((other) => other > choice).sort((one, other) => one - other)[0];
      this.element.insertBefore(container, later === undefined ? null : this.choices.get(later).parentNode);
      this.choices.set(choice, text);
    }
    return this.choices.get(choice);
  }

  tellCount() {
    for (const shown of this.scope.querySelectorAll("[data-token-count]")) shown.textContent = this.tokens;
  }
}

// One stream of events per page. Where there is no room for another stream, it asks every few seconds instead.

const ASK_MS = 5000;
// Once a minute it tries whether there is room for a stream again.
const ASKS = 12;
// A browser opens six connections to a page, for all of its tabs together: each stream of a tab that nobody sees keeps
// others from being loaded at all.
const HIDDEN_MS = 2000;

export class Live {
  constructor({ onLook, onTrouble, onState }) {
    Object.assign(this, { onLook, onTrouble, onState });
    this.source = null;
    this.asking = 0;
    this.asked = 0;
    this.path = "";
    this.hiding = 0;
    document.addEventListener("visibilitychange", () => this.seen());
  }

  /** Follow a look; whatever was followed before ends. */
  follow(look, params) {
    const query = new URLSearchParams(params || {}).toString();
    this.path = `${look}${query ? "?" + query : ""}`;
    this.open();
  }

  open() {
    this.close();
    this.isPaused = document.hidden;
    if (this.isPaused) return this.onState("paused");
    this.onState("waiting");
    const source = new EventSource(`/live/${this.path}`);
    this.source = source;
    source.addEventListener("look", (event) => this.take(event.data));
    source.addEventListener("trouble", (event) => {
      this.onState("trouble");
      this.onTrouble(JSON.parse(event.data).error);
    });
    source.addEventListener("gone", () => location.reload());
    source.onerror = () => {
      if (this.source !== source) return;
      this.onState("lost");
      if (source.readyState === EventSource.CLOSED) this.ask();
    };
    return undefined;
  }

  close() {
    clearTimeout(this.asking);
    if (this.source) this.source.close();
    this.source = null;
  }

  take(text) {
    this.onState("live");
    this.onLook(JSON.parse(text));
  }

  async ask() {
    this.close();
    const path = this.path;
    try {
      const answer = await fetch(`/api/${path}`, { cache: "no-store" });
      if (answer.status === 401) return location.reload();
      const told = await answer.json();
      if (path !== this.path || this.source) return undefined;
      if (answer.ok) {
        this.onState("asking");
        this.onLook(told);
      } else {
        this.onState("trouble");
        this.onTrouble(told.error || "the page does not answer");
      }
    } catch {
      this.onState("lost");
    }
    if (path === this.path && !this.source) this.asking = setTimeout(() => (++this.asked % ASKS ? this.ask() : this.open()), ASK_MS);
    return undefined;
  }

  // A tab that nobody sees costs nothing.
  seen() {
    clearTimeout(this.hiding);
    if (document.hidden) {
      this.hiding = setTimeout(() => { this.close(); this.onState("paused"); this.isPaused = true; }, HIDDEN_MS);
    } else if (this.isPaused) {
      this.open();
    }
  }
}

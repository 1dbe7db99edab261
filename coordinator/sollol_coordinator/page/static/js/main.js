// Draws the page that the shell names, and keeps it drawn.

import { show, h } from "./dom.js";
import { listen } from "./actions.js";
import { Live } from "./live.js";
import { listenToPlots } from "./plot.js";
const STATES = {
  waiting: "connecting", live: "live", asking: "every 5 s", trouble: "trouble", lost: "page is away", paused: "paused",
};

const main = document.getElementById("view");
const look = main.dataset.look;
const view = await import(`./views/${look}.js`).catch((error) => {
  dispatchEvent(new Event("unfetched"));
  throw error;
});
const trouble = h("div", { class: "trouble", role: "alert", hidden: true });
const body = h("div", { class: "view" });
const badge = document.getElementById("live");

function state(word) {
  badge.dataset.state = word;
  badge.querySelector(".text").textContent = STATES[word];
}

const params = () => Object.fromEntries(new URLSearchParams(location.search));

const live = new Live({
  onLook(told) {
    trouble.hidden = true;
    try {
      draw(told);
    } catch (error) {
      state("trouble");
      this.onTrouble(`The page made a mistake in drawing what it was told (${error})`);
    }
  },
  onTrouble(error) {
    trouble.textContent = `${error}. What is shown below may be old.`;
    trouble.hidden = false;
  },
  onState: state,
});

function draw(told) {
  if (look === "overview") document.title = titleOf(told);
  show(body, view.render(told, params(), go));
  body.dataset.drawn = String(Number(body.dataset.drawn || 0) + 1);
  if (view.after) view.after(told);
}

function titleOf(told) {
  const errors = told.alerts.filter((alert) => alert.level === "error").length;
  return `${errors ? `(${errors}) ` : ""}Overview · SOLLOL`;
}

/** Go on with other parameters, without loading the page anew. */
function go(next) {
  const query = new URLSearchParams(Object.entries(next).filter(([, value]) => value !== "" && value !== undefined));
  history.replaceState(null, "", query.size ? `?${query}` : location.pathname);
  live.follow(look, params());
}

main.replaceChildren(main.querySelector("h1"), ...(view.frame ? [view.frame(params(), go)] : []), trouble, body);
body.append(h("p", { class: "loading" }, "Reading the fabric…"));
const here = document.querySelector("#menu [aria-current]");
if (here) here.scrollIntoView({ inline: "center", block: "nearest" }); // the menu is wider than a phone
listen();
listenToPlots();
live.follow(look, params());
addEventListener("popstate", () => live.follow(look, params()));

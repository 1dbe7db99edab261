// Filters above lists: a form whose fields become the parameters of the page.

import { h } from "./dom.js";

/** A form; `reset` names parameters that a change takes away. */
export function filters(id, go, reset, ...fields) {
  const form = h("form", { class: "filters", id, role: "search" }, fields);
  let timer = 0;
  const apply = () => {
    const now = Object.fromEntries(new URLSearchParams(location.search));
    for (const name of reset) delete now[name];
    go({ ...now, ...Object.fromEntries(new FormData(form)) });
  };
  form.addEventListener("input", () => { clearTimeout(timer); timer = setTimeout(apply, 250); });
  form.addEventListener("submit", (event) => { event.preventDefault(); apply(); });
  return form;
}

export function field(name, label, value, props) {
  return h("label", {}, h("span", {}, label), h("input", { name, value: value || null, type: "search", autocomplete: "off", ...(props || {}) }));
}

export function pick(name, label, choices, value) {
  return h("label", {}, h("span", {}, label), h("select", { name },
    choices.map(([word, text]) => h("option", { value: word, selected: word === (value || "") }, text))));
}

/** A field with a list of what there is; the list is filled when it is known. */
export function listed(name, label, value) {
  return h("label", {}, h("span", {}, label),
    h("input", { name, value: value || null, type: "search", autocomplete: "off", list: `${name}-list` }), h("datalist", { id: `${name}-list` }));
}

export function fillList(name, words) {
  const list = document.getElementById(`${name}-list`);
  if (!list || list.dataset.words === words.join("\n")) return;
  list.dataset.words = words.join("\n");
  list.replaceChildren(...words.map((word) => h("option", { value: word })));
}

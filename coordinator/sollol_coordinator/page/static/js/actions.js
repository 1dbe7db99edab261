// What an operator can do: a button or a list with data-do names the verb, its other data- attributes say to what.

const token = () => document.querySelector('meta[name="csrf-token"]').content;
const role = () => document.querySelector('meta[name="role"]').content;

/** Whether the visitor may change things; the page itself asks again. */
export const mayOperate = () => role() === "operator";

/** Say in a corner what came of something. */
export function say(text, isError) {
  const place = document.getElementById("said");
  place.textContent = text;
  place.dataset.state = isError ? "error" : "done";
  clearTimeout(say.timer);
  say.timer = setTimeout(() => { place.textContent = ""; delete place.dataset.state; }, isError ? 10000 : 4000);
}

async function post(verb, given) {
  const body = new URLSearchParams(given);
  const answer = await fetch(`/do/${encodeURIComponent(verb)}`, {
    method: "POST", body, headers: { "X-CSRF-Token": token() },
  });
  if (answer.status === 401) return location.reload();
  const told = await answer.json().catch(() => ({ error: `the page answered ${answer.status}` }));
  if (!answer.ok) throw new Error(told.error);
  return told.said;
}

function sure(text) {
  const dialog = document.getElementById("ask");
  document.getElementById("ask-text").textContent = text;
  return new Promise((done) => {
    dialog.addEventListener("close", () => done(dialog.returnValue === "yes"), { once: true });
    dialog.returnValue = "no";
    dialog.showModal();
  });
}

async function act(element, more) {
  const { do: verb, sure: question, ...given } = { ...element.dataset, ...more };
  delete given.key;
  if (question && !(await sure(question))) return;
  element.disabled = true;
  try {
    say(await post(verb, given));
  } catch (error) {
    say(error.message, true);
    for (const option of element.options || []) option.selected = option.defaultSelected;
  } finally {
    element.disabled = false;
  }
}

export function listen() {
  document.addEventListener("click", (event) => {
    const button = event.target.closest("button[data-do]");
    if (button) act(button, {});
  });
  document.addEventListener("change", (event) => {
    const list = event.target.closest("select[data-do]");
    if (list && list.value) act(list, { [list.name]: list.value });
  });
}

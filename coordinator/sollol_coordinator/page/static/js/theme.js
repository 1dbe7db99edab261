// Before anything is drawn: light or dark, as chosen here earlier; else as the system has it. And where a script cannot be
// fetched, since the page starts anew or the network changes, all is tried again once the page answers.
"use strict";
(function () {
  let waits = false;
  function again() {
    setTimeout(() => fetch("/livez").then(() => location.reload(), again), 2000);
  }
  function failed() {
    if (waits) return;
    waits = true;
    again();
  }
  addEventListener("error", (event) => { if (event.target instanceof HTMLScriptElement) failed(); }, true);
  addEventListener("unfetched", failed);
})();
(function () {
  const known = ["light", "dark"];
  function chosen() {
    try { return localStorage.getItem("sollol-theme") || ""; } catch { return ""; }
  }
  function set(theme) {
    if (known.includes(theme)) document.documentElement.dataset.theme = theme;
    else delete document.documentElement.dataset.theme;
  }
  set(chosen());
  document.addEventListener("click", (event) => {
    if (!event.target.closest || !event.target.closest("#theme")) return;
    const isDark = matchMedia("(prefers-color-scheme: dark)").matches;
    const now = document.documentElement.dataset.theme || (isDark ? "dark" : "light");
    const next = now === "dark" ? "light" : "dark";
    set(next);
    try { localStorage.setItem("sollol-theme", next); } catch { /* it holds for this page, then */ }
  });
})();

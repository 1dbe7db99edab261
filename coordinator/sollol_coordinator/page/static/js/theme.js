// Before anything is drawn: light or dark, as chosen here earlier; else as the system has it.
"use strict";
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

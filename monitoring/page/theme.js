// Runs before the first paint: the chosen theme, if one was chosen, else the system's.
"use strict";
(() => {
  let chosen = new URLSearchParams(location.search).get("theme");
  try { chosen = chosen || localStorage.getItem("qshift-theme"); } catch { /* storage is off: follow the system */ }
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
})();

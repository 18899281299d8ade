"use strict";
const zoom = document.getElementById("zoom");
zoom.addEventListener("input", () => document.documentElement.style.setProperty("--zoom", zoom.value));

// A layer is marked in the timeline and in the table at once, whichever of them is clicked.
document.addEventListener("click", (event) => {
  const source = event.target.closest("[data-layer]");
  if (!source) return;
  for (const one of document.querySelectorAll("[data-layer]"))
    one.classList.toggle("chosen", one.dataset.layer === source.dataset.layer);
  const row = document.querySelector(`tr[data-layer="${CSS.escape(source.dataset.layer)}"]`);
  if (row && source !== row) row.scrollIntoView({ block: "nearest" });
});

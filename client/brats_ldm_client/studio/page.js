"use strict";
// What needs no round trip: downloads, copying the digest, and the big picture of a walk.

function studioDownload(address) {
  if (!address) return;
  const link = document.createElement("a");
  link.href = address;
  link.download = "";
  document.body.append(link);
  link.click();
  link.remove();
}

function studioShow() {
  const slider = document.querySelector("#walk-slider");
  const big = document.querySelector("#walk-big");
  const figures = document.querySelectorAll("#walk-strip figure");
  if (!slider || !big || !figures.length) return;
  if (slider.max !== String(figures.length - 1)) {
    slider.max = figures.length - 1;
    slider.value = Math.floor(figures.length / 2);
    slider.disabled = false;
  }
  const chosen = figures[slider.value] ?? figures[0];
  figures.forEach((figure) => figure.classList.toggle("chosen", figure === chosen));
  if (big.firstElementChild?.outerHTML !== chosen.outerHTML) big.replaceChildren(chosen.cloneNode(true));
}

document.addEventListener("input", (event) => {
  if (event.target.id === "walk-slider") studioShow();
});

document.addEventListener("click", (event) => {
  const digest = event.target.closest?.("[data-copy]");
  if (digest) navigator.clipboard?.writeText(digest.dataset.copy);
  const figure = event.target.closest?.("#walk-strip figure");
  if (figure) {
    const slider = document.querySelector("#walk-slider");
    slider.value = [...document.querySelectorAll("#walk-strip figure")].indexOf(figure);
    studioShow();
  }
});

// The strip is drawn anew by the page while a walk runs.
new MutationObserver((changes) => {
  if (changes.some((change) => change.target.closest?.("#walk-strip"))) studioShow();
}).observe(document.documentElement, { childList: true, subtree: true, attributes: true, attributeFilter: ["src"] });

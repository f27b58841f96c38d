// Hides the rows of the table above this script that do not hold the words in the field.
(() => {
  "use strict";
  const part = document.currentScript.closest(".search");
  const rows = [...part.querySelectorAll("tbody tr")];
  part.querySelector("input").addEventListener("input", (event) => {
    const words = event.target.value.trim().toLowerCase();
    for (const row of rows) row.hidden = !row.textContent.toLowerCase().includes(words);
  });
})();

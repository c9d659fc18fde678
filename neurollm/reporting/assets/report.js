"use strict";
// The page is complete without this script: it only adds sorting, filtering and copying.
(() => {
  const say = (button, words) => {
    const before = button.textContent;
    button.textContent = words;
    setTimeout(() => { button.textContent = before; }, 1600);
  };

  const copy = async (text, button) => {
    try {
      await navigator.clipboard.writeText(text);
      say(button, "Copied");
    } catch {
      const area = document.createElement("textarea");
      area.value = text;
      document.body.append(area);
      area.select();
      const done = document.execCommand("copy");
      area.remove();
      button.focus();
      say(button, done ? "Copied" : "Copying is blocked");
    }
  };

  const compare = (a, b, sign) => {
    if (a === null || b === null) return (a === null) - (b === null);
    return sign * (a - b);
  };

  const setUpTable = (box) => {
    const { columns, titles, rows } = JSON.parse(box.querySelector('script[type="application/json"]').textContent);
    const table = box.querySelector("table");
    const entries = [...table.tBodies].map((body, i) => ({
      body,
      place: i,
      values: Object.fromEntries(columns.map((name, j) => [name, rows[i][j]])),
      words: body.textContent.toLowerCase(),
    }));
    const search = box.querySelector('input[type="search"]');
    const only = box.querySelector("[data-significant]");
    const output = box.querySelector("output");

    const filter = () => {
      const wanted = search.value.trim().toLowerCase();
      let shown = 0;
      for (const { body, words } of entries) {
        body.hidden = !words.includes(wanted) || (only.checked && !body.classList.contains("significant"));
        shown += !body.hidden;
      }
      output.textContent = `${shown} of ${entries.length} shown`;
    };

    const sortBy = (header) => {
      const was = header.getAttribute("aria-sort");
      const first = header.dataset.first === "desc" ? "descending" : "ascending";
      const other = first === "descending" ? "ascending" : "descending";
      const now = was === first ? other : first;
      for (const th of table.querySelectorAll("th[aria-sort]")) th.removeAttribute("aria-sort");
      header.setAttribute("aria-sort", now);
      const sign = now === "ascending" ? 1 : -1;
      const key = header.dataset.key;
      entries.sort((a, b) => compare(a.values[key], b.values[key], sign) || a.place - b.place);
      table.append(...entries.map((entry) => entry.body));
    };

    for (const header of table.querySelectorAll("th[data-key]")) {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...header.childNodes);
      header.append(button);
      button.addEventListener("click", () => sortBy(header));
    }
    search.addEventListener("input", filter);
    only.addEventListener("change", filter);
    table.addEventListener("click", (event) => {
      const row = event.target.closest("tbody > tr:first-child");
      if (!row || event.target.closest("summary") || String(getSelection())) return;
      const toggle = row.querySelector("details.toggle");
      toggle.open = !toggle.open;
    });
    box.querySelector("[data-table]").addEventListener("click", (event) => {
      const visible = entries.filter((entry) => !entry.body.hidden);
      const lines = visible.map((entry) => columns.map((name) => entry.values[name] ?? "").join("\t"));
      copy([titles.join("\t"), ...lines].join("\n"), event.currentTarget);
    });
    box.querySelector(".tools").hidden = false;
    box.classList.add("live");
    filter();
  };

  document.querySelectorAll(".features").forEach(setUpTable);
  for (const button of document.querySelectorAll("[data-copy]")) {
    button.hidden = false;
    button.addEventListener("click", () => copy(document.getElementById(button.dataset.copy).innerText, button));
  }
})();

"use strict";

// A column's button sorts its table: numbers largest first, text from A to Z, then the reverse.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  const body = table.tBodies[0];
  heads.forEach((head, column) => {
    const isText = head.dataset.type === "text";
    head.querySelector("button").addEventListener("click", () => {
      const first = isText || column === 0 ? "ascending" : "descending";
      const other = first === "ascending" ? "descending" : "ascending";
      const order = head.getAttribute("aria-sort") === first ? other : first;
      const sign = order === "ascending" ? 1 : -1;
      const value = (row) => row.cells[column].dataset.value;
      const compare = (a, b) => {
        if (isText) return a.localeCompare(b, undefined, { numeric: true });
        if (Number(a) === Number(b)) return 0; // infinities have no difference
        return Number(a) - Number(b);
      };
      const rows = [...body.rows].sort((a, b) => {
        const [left, right] = [value(a), value(b)];
        if (left === "" || right === "") return (left === "") - (right === ""); // absent: last
        return sign * compare(left, right);
      });
      body.append(...rows);
      for (const each of heads) each.setAttribute("aria-sort", each === head ? order : "none");
    });
  });
}

// Where the page may not write to the clipboard, the code is selected, ready to be copied.
for (const button of document.querySelectorAll("button.copy")) {
  const code = button.previousElementSibling;
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(code);
      button.textContent = "Selected";
    }
    setTimeout(() => (button.textContent = "Copy"), 2000);
  });
}

// A link to a folded check unfolds it.
const unfold = () => {
  const target = location.hash && document.getElementById(location.hash.slice(1));
  if (target instanceof HTMLDetailsElement) {
    target.open = true;
    target.scrollIntoView();
  }
};
addEventListener("hashchange", unfold);
unfold();

// Sorts a table's rows by the clicked column; the lower bound stays last.
for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const th = button.parentElement;
    const body = th.closest("table").tBodies[0];
    const index = [...th.parentElement.children].indexOf(th);
    const up = th.getAttribute("aria-sort") !== "ascending";
    for (const other of th.parentElement.children) other.removeAttribute("aria-sort");
    th.setAttribute("aria-sort", up ? "ascending" : "descending");
    const key = (row) => {
      const cell = row.children[index];
      if (cell.dataset.value === undefined) return cell.textContent;
      return cell.dataset.value === "" ? Infinity : Number(cell.dataset.value);
    };
    const isBound = (row) => row.classList.contains("bound");
    const rows = [...body.rows].filter((row) => !isBound(row));
    const last = [...body.rows].filter(isBound);
    rows.sort((a, b) => {
      const [x, y] = up ? [key(a), key(b)] : [key(b), key(a)];
      return x < y ? -1 : x > y ? 1 : 0;
    });
    body.append(...rows, ...last);
  });
}

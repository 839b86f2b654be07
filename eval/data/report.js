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

// Figures: the legend hides and shows series; points tell what they are to pointer and arrow keys.
const NEAR = 28; // pixels
for (const figure of document.querySelectorAll("figure")) {
  const hidden = new Set();
  const points = JSON.parse(figure.querySelector("script").textContent);
  const panels = [...figure.querySelectorAll(".panel")];

  for (const button of figure.querySelectorAll(".legend button")) {
    const key = button.dataset.key;
    button.addEventListener("click", () => {
      const shown = button.getAttribute("aria-pressed") === "false";
      button.setAttribute("aria-pressed", String(shown));
      if (shown) hidden.delete(key); else hidden.add(key);
      for (const part of figure.querySelectorAll(`.panel .${key}`)) part.classList.toggle("off", !shown);
    });
    const light = (on) => { for (const panel of panels) mark(panel, on && !hidden.has(key) ? [key] : []); };
    button.addEventListener("pointerenter", () => light(true));
    button.addEventListener("pointerleave", () => light(false));
  }

  panels.forEach((panel, index) => {
    const svg = panel.querySelector("svg");
    const tip = document.createElement("div");
    tip.className = "tip";
    tip.setAttribute("role", "status");
    tip.hidden = true;
    panel.append(tip);
    let at = -1;
    const visible = () => points[index].filter(([key]) => !hidden.has(key));

    const tell = (point) => {
      if (!point) {
        tip.hidden = true;
        mark(panel, []);
        return;
      }
      const [, x, y] = point;
      const here = visible().filter((other) => other[1] === x && other[2] === y);
      const place = svg.getScreenCTM(), box = panel.getBoundingClientRect();
      tip.textContent = [...new Set(here.map((other) => other[3]))].join("\n");
      tip.hidden = false;
      const left = x * place.a + place.e - box.left, top = y * place.d + place.f - box.top;
      tip.style.left = `${Math.max(0, Math.min(left + 12, box.width - tip.offsetWidth))}px`;
      tip.style.top = `${top > tip.offsetHeight + 14 ? top - tip.offsetHeight - 12 : top + 14}px`;
      mark(panel, here.map(([key]) => key));
    };

    panel.addEventListener("pointermove", (event) => {
      const place = svg.getScreenCTM();
      const away = ([, x, y]) =>
        Math.hypot(x * place.a + place.e - event.clientX, y * place.d + place.f - event.clientY);
      const nearest = visible().reduce((a, b) => (a && away(a) <= away(b) ? a : b), null);
      tell(nearest && away(nearest) < NEAR ? nearest : null);
    });
    panel.addEventListener("pointerleave", () => tell(null));
    panel.addEventListener("blur", () => { at = -1; tell(null); });
    panel.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      const all = visible();
      if (event.key === "Escape") tell(null);
      if (!step || !all.length) return;
      event.preventDefault();
      at = at < 0 && step < 0 ? all.length - 1 : (at + step + all.length) % all.length;
      tell(all[at]);
    });
  });
}

function mark(panel, keys) {
  panel.classList.toggle("telling", keys.length > 0);
  for (const part of panel.querySelectorAll(".s")) {
    part.classList.toggle("on", keys.some((key) => part.classList.contains(key)));
  }
}

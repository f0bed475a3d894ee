// The page of `medsyn view`: the list of volumes, the buttons, text and measures beside the canvas of canvas.js.

"use strict";

(async () => {
  const element = (id) => document.getElementById(id);
  const make = (tag, text) => Object.assign(document.createElement(tag), { textContent: text });
  const cases = JSON.parse(element("facts").textContent);
  const fill = (table, rows) =>
    table.replaceChildren(
      ...rows.map((row) => {
        const line = make("tr", "");
        line.append(...row.map((cell) => make("td", cell)));
        return line;
      }),
    );
  const bytes = (k, name) => Uint8Array.from(atob(element(`file-${k}-${name}`).textContent), (c) => c.charCodeAt(0));
  let view;
  try {
    view = await medsynViewer.open(element("canvas"));
  } catch (error) {
    element("frame").replaceChildren(make("p", `Volumes cannot be drawn: ${error.message}.`));
    return;
  }
  window.medsynView = view; // for tests

  async function choose(k) {
    const entry = cases[k];
    document.body.dataset.shown = "";
    element("name").textContent = entry.group ? `${entry.group}: ${entry.name}` : entry.name;
    element("grid").textContent = entry.grid;
    element("text").textContent = entry.text;
    fill(element("measures"), entry.measures);
    const masks = Object.fromEntries(entry.masks.map((name) => [name, bytes(k, name)]));
    if (!(await view.show({ image: bytes(k, "image"), masks, oriented: entry.oriented }))) return;
    element("masks").replaceChildren(...entry.masks.map(maskControl));
    document.body.dataset.shown = k;
  }

  function maskControl(name) {
    const label = make("label", "");
    const box = Object.assign(make("input", ""), { type: "checkbox", checked: !view.hidden.has(name), id: `mask-${name}` });
    const range = Object.assign(make("input", ""), { type: "range", min: 0, max: 1, step: 0.05, value: view.opacity[name] });
    range.setAttribute("aria-label", `opacity of ${name}`);
    const swatch = make("span", "");
    swatch.className = "swatch";
    swatch.style.background = `rgb(${Object.values(medsynViewer.COLOURS[name])[0]})`;
    box.addEventListener("change", () => view.showMask(name, box.checked));
    range.addEventListener("input", () => view.setMask(name, Number(range.value)));
    label.append(box, swatch, name, range);
    return label;
  }

  view.onChange = (state) => {
    for (const button of document.querySelectorAll("[data-preset]")) button.setAttribute("aria-pressed", button.dataset.preset === state.preset);
    for (const button of document.querySelectorAll("[data-main]")) button.setAttribute("aria-pressed", button.dataset.main === state.main);
    for (const name of state.masks) if (element(`mask-${name}`)) element(`mask-${name}`).checked = !state.hidden.includes(name);
    const place = state.hu === null ? "" : `, ${Math.round(state.hu)} HU at ${state.mm.map((x) => x.toFixed(0)).join(", ")} mm`;
    element("state").textContent = `level ${state.level}, width ${state.width}${place}`;
  };
  for (const button of document.querySelectorAll("[data-preset]")) button.onclick = () => view.preset(button.dataset.preset);
  for (const button of document.querySelectorAll("[data-main]")) button.onclick = () => view.setMain(button.dataset.main);
  element("reset").onclick = () => view.reset();
  document.addEventListener("keydown", (event) => {
    if (event.key === "n" || event.key === "p") {
      const next = element("cases").selectedIndex + (event.key === "n" ? 1 : -1);
      if (next >= 0 && next < cases.length) choose((element("cases").selectedIndex = next));
    } else if (view.key(event)) event.preventDefault();
  });
  element("cases").append(...cases.map((entry) => make("option", entry.group ? `${entry.group}: ${entry.name}` : entry.name)));
  element("cases").onchange = () => choose(element("cases").selectedIndex);
  fill(element("keys"), [["n, p", "next, previous volume"], ...Object.entries(medsynViewer.KEYS)]);
  await choose(0);
})();

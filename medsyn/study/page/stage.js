// The viewers of an item and the tools above them. All viewers share one state: they scroll, zoom and window together.

import { byId } from "./elements.js";
import { VIEWS, Viewer } from "./viewer.js";

export const PRESETS = {
  lung: { level: -600, width: 1500 },
  mediastinum: { level: 40, width: 400 },
  bone: { level: 400, width: 1800 },
};

const axisOf = (view) => 2 - view;
const between = (value, low, high) => Math.min(high, Math.max(low, value));

export class Stage {
  viewers = [];
  shown = 0;
  active = 0;
  large = false;
  tool = matchMedia("(pointer: coarse)").matches ? "scroll" : "crosshair";
  state = { cross: [0.5, 0.5, 0.5], pan: [0, 0, 0], zoom: 1, main: 0, lines: true, level: -600, width: 1500 };
  onActive = () => {};
  onLost = () => {};
  #pointers = new Map();
  #drag = null;
  #drawing = false;
  #stale = new Set();

  constructor() {
    this.#bindTools();
    new ResizeObserver(() => this.draw()).observe(byId("viewers"));
  }

  /** Show volumes side by side, each given as the bytes of its file, with a window. */
  async show(files, window) {
    this.shown = files.length;
    this.large = false;
    this.#set({ cross: [0.5, 0.5, 0.5], pan: [0, 0, 0], zoom: 1, main: 0, ...window });
    while (this.viewers.length < files.length) {
      const viewer = await Viewer.create(String.fromCharCode(65 + this.viewers.length));
      this.#bindCanvas(viewer, this.viewers.length);
      this.viewers.push(viewer);
    }
    this.#arrange();
    for (const [index, viewer] of this.viewers.entries()) {
      if (index < files.length) await viewer.load(files[index], this.state);
      else viewer.clear();
    }
    this.activate(0);
    this.draw();
  }

  clear() {
    for (const viewer of this.viewers) viewer.clear();
  }

  /** Highlight a viewer: number keys rank it. */
  activate(index) {
    this.active = between(index, 0, this.shown - 1);
    this.#arrange();
    this.onActive(this.active);
  }

  /** Show the highlighted viewer alone, or all again. */
  enlarge() {
    if (this.shown < 2) return;
    this.large = !this.large;
    this.#arrange();
  }

  /** Act on a key that is not the form's; return whether it was one of these. */
  key(event) {
    const act = {
      ArrowUp: () => this.scroll(-1), ArrowDown: () => this.scroll(1),
      PageUp: () => this.scroll(-10), PageDown: () => this.scroll(10),
      l: () => this.setWindow(PRESETS.lung), m: () => this.setWindow(PRESETS.mediastinum),
      b: () => this.setWindow(PRESETS.bone),
      a: () => this.setMain(0), c: () => this.setMain(1), s: () => this.setMain(2),
      "+": () => this.zoom(1.25), "=": () => this.zoom(1.25), "-": () => this.zoom(0.8),
      r: () => this.reset(), x: () => this.toggleLines(), f: () => this.enlarge(),
      ArrowLeft: () => this.activate(this.active - 1), ArrowRight: () => this.activate(this.active + 1),
    }[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    if (act) act();
    return Boolean(act);
  }

  /** Move by slices of a view: forwards is towards the feet, the back and the patient's left. */
  scroll(slices, view = this.state.main) {
    const axis = axisOf(view);
    this.#toSlice(axis, this.#sliceNumber(axis) + slices);
  }

  zoom(factor) {
    this.#set({ zoom: between(this.state.zoom * factor, 0.5, 10) });
  }

  setMain(main) {
    this.#set({ main });
  }

  setWindow({ level, width }) {
    this.#set({ level: between(Math.round(level), -1500, 3000), width: between(Math.round(width), 1, 6000) });
  }

  toggleLines() {
    this.#set({ lines: !this.state.lines });
  }

  reset() {
    this.#set({ cross: [0.5, 0.5, 0.5], pan: [0, 0, 0], zoom: 1 });
  }

  /** Draw at the next frame, once for all changes until then. */
  draw() {
    if (this.#drawing) return;
    this.#drawing = true;
    requestAnimationFrame(() => {
      this.#drawing = false;
      // While dragging a window only the viewer under the pointer follows at once; the others follow at the end.
      for (const viewer of this.viewers.slice(0, this.shown)) {
        if (this.#drag?.tool !== "window" || this.#drag.viewer === viewer) viewer.setWindow(this.state);
        else this.#stale.add(viewer);
        viewer.draw(this.state);
      }
      this.#describe();
    });
  }

  #set(change) {
    Object.assign(this.state, change);
    this.draw();
  }

  #size(axis) {
    return this.viewers[0]?.size[axis] ?? 1;
  }

  /** The number of the slice through the crosshair: 1 is the top, the front or the patient's right side. */
  #sliceNumber(axis) {
    const size = this.#size(axis);
    return size - between(Math.floor(this.state.cross[axis] * size), 0, size - 1);
  }

  #toSlice(axis, number) {
    const size = this.#size(axis);
    const cross = [...this.state.cross];
    cross[axis] = (size - between(number, 1, size) + 0.5) / size;
    this.#set({ cross });
  }

  #arrange() {
    byId("viewers").dataset.count = this.large ? 1 : this.shown;
    for (const [index, viewer] of this.viewers.entries()) {
      viewer.figure.hidden = index >= this.shown || (this.large && index !== this.active);
      viewer.figure.classList.toggle("active", this.shown > 1 && index === this.active);
    }
    this.draw();
  }

  /** Write what is shown into the tools and the labels. */
  #describe() {
    const { main, cross, level, width, lines } = this.state;
    const axis = axisOf(main);
    const [number, size] = [this.#sliceNumber(axis), this.#size(axis)];
    for (const button of document.querySelectorAll("#tools [data-window]")) {
      const preset = PRESETS[button.dataset.window];
      button.setAttribute("aria-pressed", String(preset.level === level && preset.width === width));
    }
    for (const button of document.querySelectorAll("#tools [data-view]")) {
      button.setAttribute("aria-pressed", String(Number(button.dataset.view) === main));
    }
    for (const button of document.querySelectorAll("#tools [data-tool]")) {
      button.setAttribute("aria-pressed", String(button.dataset.tool === this.tool));
    }
    byId("lines").setAttribute("aria-pressed", String(lines));
    for (const [id, value] of [["level", level], ["width", width]]) {
      if (document.activeElement !== byId(id)) byId(id).value = value;
    }
    Object.assign(byId("slice"), { max: size, value: number });
    byId("slice-text").textContent = `${VIEWS[main]} ${number}/${size}`;
    for (const viewer of this.viewers.slice(0, this.shown)) {
      const name = this.shown > 1 ? `CT ${viewer.letter}` : "CT";
      const value = viewer.valueAt(cross);
      viewer.caption.textContent = this.shown > 1 ? name : "";
      viewer.canvas.setAttribute("aria-label", `${name}, ${VIEWS[main]} slice ${number} of ${size}`);
      if (value !== null) viewer.canvas.title = `${Math.round(value)} HU at the crosshair`;
    }
  }

  #bindTools() {
    const on = (selector, act) => {
      for (const button of document.querySelectorAll(selector)) button.addEventListener("click", () => act(button.dataset));
    };
    on("#tools [data-window]", (data) => this.setWindow(PRESETS[data.window]));
    on("#tools [data-view]", (data) => this.setMain(Number(data.view)));
    on("#tools [data-tool]", (data) => { this.tool = data.tool; this.draw(); });
    on("#zoom-in", () => this.zoom(1.25));
    on("#zoom-out", () => this.zoom(0.8));
    on("#reset", () => this.reset());
    on("#lines", () => this.toggleLines());
    byId("slice").addEventListener("input", () => this.#toSlice(axisOf(this.state.main), Number(byId("slice").value)));
    for (const id of ["level", "width"]) {
      byId(id).addEventListener("change", () => {
        if (byId(id).checkValidity() && byId(id).value !== "") this.setWindow({ ...this.state, [id]: Number(byId(id).value) });
      });
    }
  }

  #bindCanvas(viewer, index) {
    const { canvas } = viewer;
    const on = (kind, act) => canvas.addEventListener(kind, act, { passive: false });
    on("focus", () => this.activate(index));
    on("contextmenu", (event) => event.preventDefault());
    on("webglcontextlost", () => this.onLost());
    on("pointerdown", (event) => this.#press(event, viewer, index));
    on("pointermove", (event) => this.#move(event, viewer));
    for (const kind of ["pointerup", "pointercancel"]) on(kind, (event) => this.#release(event));
    on("dblclick", (event) => {
      const hit = viewer.at(event.clientX, event.clientY);
      if (hit) this.setMain(hit.view);
    });
    on("wheel", (event) => {
      event.preventDefault();
      const hit = viewer.at(event.clientX, event.clientY);
      if (event.ctrlKey) this.zoom(event.deltaY < 0 ? 1.1 : 1 / 1.1);
      else if (hit && event.deltaY) this.scroll(Math.sign(event.deltaY), hit.view);
    });
  }

  #press(event, viewer, index) {
    event.preventDefault();
    viewer.canvas.setPointerCapture(event.pointerId);
    viewer.canvas.focus({ preventScroll: true });
    this.activate(index);
    this.#pointers.set(event.pointerId, event);
    const hit = viewer.at(event.clientX, event.clientY);
    const tool = { 1: "pan", 2: "window" }[event.button] ?? this.tool;
    this.#drag = hit && { tool, viewer, hit, start: event, last: event, before: structuredClone(this.state) };
    if (this.#drag?.tool === "crosshair" && hit.cross) this.#set({ cross: hit.cross });
  }

  #move(event, viewer) {
    if (!this.#pointers.has(event.pointerId)) return;
    if (this.#pointers.size === 2) this.#pinch(event);
    this.#pointers.set(event.pointerId, event);
    if (this.#pointers.size !== 1 || !this.#drag) return;
    const { tool, hit, start, before } = this.#drag;
    const [right, down] = [event.clientX - start.clientX, event.clientY - start.clientY];
    if (tool === "crosshair") {
      const found = viewer.at(event.clientX, event.clientY);
      if (found?.view === hit.view && found.cross) this.#set({ cross: found.cross });
    } else if (tool === "window") {
      this.setWindow({ level: before.level + 3 * down, width: before.width + 5 * right });
    } else if (tool === "pan") {
      this.#pan(before.pan, hit, right, down);
    } else if (tool === "scroll") {
      const axis = axisOf(hit.view);
      const steps = Math.round((down * this.#size(axis)) / 200);
      const from = this.#size(axis) - Math.floor(before.cross[axis] * this.#size(axis));
      this.#toSlice(axis, from + steps);
    }
  }

  #release(event) {
    this.#pointers.delete(event.pointerId);
    this.#drag = null;
    if (this.#stale.size) {
      this.#stale.clear();
      this.draw();
    }
  }

  /** Move the image with the pointer: x of the screen runs to the patient's left, or to the back in sagittal views. */
  #pan(from, { view, millimetres }, right, down) {
    const [across, up] = [right * millimetres, -down * millimetres];
    const pan = [...from];
    pan[view === 2 ? 1 : 0] -= across;
    pan[view === 0 ? 1 : 2] += up;
    this.#set({ pan });
  }

  /** Zoom and move with two fingers. */
  #pinch(event) {
    const [first, second] = [...this.#pointers.values()];
    const other = first.pointerId === event.pointerId ? second : first;
    const old = this.#pointers.get(event.pointerId);
    const apart = (point) => Math.hypot(point.clientX - other.clientX, point.clientY - other.clientY);
    this.zoom(apart(event) / Math.max(1, apart(old)));
    if (this.#drag) {
      const { hit } = this.#drag;
      this.#pan(this.state.pan, hit, (event.clientX - old.clientX) / 2, (event.clientY - old.clientY) / 2);
    }
  }
}

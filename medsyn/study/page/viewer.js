// One CT in three views on one canvas, drawn by NiiVue. What it shows is given by a state that several viewers share.

import { make } from "./elements.js";

export const VIEWS = ["axial", "coronal", "sagittal"];

const OPTIONS = {
  interactive: false, // the mouse, touch and keys are those of stage.js
  isRadiologicalConvention: true,
  sagittalNoseLeft: true,
  isOrientationTextVisible: false, // `Viewer.#marks` writes letters that no line hides
  crosshairWidth: 0, // `Viewer.#marks` draws thin lines
  backColor: [0, 0, 0, 1],
  loadingText: "",
  logLevel: "warn",
  drawingEnabled: false,
  dragAndDropEnabled: false,
};

const WIDE = [[0, 0, 0.66, 1], [0.66, 0, 0.34, 0.5], [0.66, 0.5, 0.34, 0.5]];
const HIGH = [[0, 0, 1, 0.66], [0, 0.66, 0.5, 0.34], [0.5, 0.66, 0.5, 0.34]];
const SIDES = [["R", "L", "A", "P"], ["R", "L", "S", "I"], ["A", "P", "S", "I"]]; // left, right, top, bottom of each view
const GAP = 10; // pixels around the centre of the crosshair that its lines leave free
const SMALLEST = 260; // width in pixels below which only the main view is drawn

/** Return an element at a place given in pixels. */
function mark(tag, className, place, text = "") {
  const element = make(tag, { className }, text);
  for (const [name, value] of Object.entries(place)) element.style[name] = `${Math.max(0, value)}px`;
  return element;
}

export class Viewer {
  /** Return a viewer in a new figure. A browser without WebGL 2 is an error. */
  static async create(letter) {
    const viewer = new Viewer();
    viewer.letter = letter;
    viewer.canvas = make("canvas", { tabIndex: 0, role: "img" });
    viewer.box = make("div", { className: "canvas" }, viewer.canvas);
    viewer.sides = make("div", { className: "sides", ariaHidden: "true" });
    viewer.box.append(viewer.sides);
    viewer.caption = make("figcaption");
    viewer.figure = make("figure", {}, viewer.box, viewer.caption);
    document.getElementById("viewers").append(viewer.figure);
    if (!document.createElement("canvas").getContext("webgl2")) throw new Error("no WebGL 2");
    viewer.nv = new window.niivue.Niivue(OPTIONS);
    await viewer.nv.attachToCanvas(viewer.canvas, false);
    return viewer;
  }

  get volume() {
    return this.nv.volumes[0];
  }

  /** Voxels along right-left, posterior-anterior and inferior-superior. */
  get size() {
    return this.volume ? this.volume.dimsRAS.slice(1, 4) : [1, 1, 1];
  }

  /** Show a volume given as the bytes of its .nii.gz file. */
  async load(bytes, { level, width }) {
    const limits = { cal_min: level - width / 2, cal_max: level + width / 2 };
    const volume = await window.niivue.NVImage.loadFromUrl({ url: "ct.nii.gz", name: "ct.nii.gz", buffer: bytes, ...limits });
    Object.assign(volume, limits);
    this.clear();
    this.nv.addVolume(volume);
  }

  clear() {
    while (this.volume) this.nv.removeVolume(this.volume);
    this.sides.replaceChildren();
  }

  /** Draw the state: crosshair as fractions, pan in mm and zoom, main view, crosshair lines. */
  draw(state) {
    if (!this.volume) return;
    const { scene } = this.nv;
    scene.crosshairPos = [...state.cross];
    scene.pan2Dxyzmm = [...state.pan, state.zoom];
    const { clientWidth: width, clientHeight: height } = this.box;
    const views = [state.main, ...[0, 1, 2].filter((view) => view !== state.main)];
    this.nv.customLayout = width < SMALLEST
      ? [{ sliceType: state.main, position: [0, 0, 1, 1] }]
      : (width > height ? WIDE : HIGH).map((position, place) => ({ sliceType: views[place], position }));
    this.nv.drawScene();
    this.#marks(state);
  }

  /** Write the letters of the patient's sides at the edges of each view, and draw the lines of the crosshair. */
  #marks({ cross, lines }) {
    const scale = this.canvas.width / this.canvas.clientWidth;
    this.sides.replaceChildren(...this.nv.screenSlices.flatMap(({ axCorSag: view, leftTopWidthHeight }) => {
      const [left, top, width, height] = leftTopWidthHeight.map((value) => value / scale);
      const places = [[left, top + height / 2], [left + width, top + height / 2], [left + width / 2, top], [left + width / 2, top + height]];
      const letters = places.map(([x, y], side) => mark("span", ["left", "right", "top", "bottom"][side], { left: x, top: y }, SIDES[view][side]));
      const hit = lines && this.nv.frac2canvasPosWithTile(cross, view);
      if (!hit) return letters;
      const [x, y] = [hit.pos[0] / scale, hit.pos[1] / scale];
      const across = [[left, x - GAP], [x + GAP, left + width]].map(([from, to]) => ({ left: from, top: y, width: to - from, height: 1 }));
      const down = [[top, y - GAP], [y + GAP, top + height]].map(([from, to]) => ({ left: x, top: from, width: 1, height: to - from }));
      const visible = [...(y > top && y < top + height ? across : []), ...(x > left && x < left + width ? down : [])];
      return [...visible.map((place) => mark("i", "", place)), ...letters];
    }));
  }

  /** Set the window in HU; slower than drawing, because NiiVue maps the whole volume to grey values again. */
  setWindow({ level, width }) {
    const { volume } = this;
    const limits = [level - width / 2, level + width / 2];
    if (!volume || (volume.cal_min === limits[0] && volume.cal_max === limits[1])) return;
    [volume.cal_min, volume.cal_max] = limits;
    this.nv.updateGLVolume();
  }

  /** Return the view at a point of the window, with the position there as fractions (null outside of the volume). */
  at(x, y) {
    const frame = this.canvas.getBoundingClientRect();
    const scale = this.canvas.width / frame.width;
    const place = [(x - frame.left) * scale, (y - frame.top) * scale];
    const index = this.nv.tileIndex(...place);
    if (index < 0) return null;
    const tile = this.nv.screenSlices[index];
    const found = this.nv.screenXY2TextureFrac(...place, index, false);
    const inside = found[0] >= 0 && found.every((value) => value >= 0 && value <= 1);
    return {
      view: tile.axCorSag,
      cross: inside ? [found[0], found[1], found[2]] : null,
      millimetres: (tile.fovMM[0] / tile.leftTopWidthHeight[2]) * scale,
    };
  }

  /** Return the value at the crosshair in HU. */
  valueAt(cross) {
    if (!this.volume) return null;
    const voxel = cross.map((value, axis) => Math.min(this.size[axis] - 1, Math.max(0, Math.floor(value * this.size[axis]))));
    return this.volume.getValue(...voxel);
  }
}

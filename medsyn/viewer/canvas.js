// Shows a CT in three planes on one canvas: windows, masks, scrolling, zoom, crosshair, keyboard.
// A plain script after niivue.umd.js, so that pages also work from a file. It sets up NiiVue and makes no other element.
//
//   const view = await medsynViewer.open(canvas);
//   await view.show({image: bytes, masks: {lobes: bytes}, oriented: true});   // Uint8Array of .nii or .nii.gz
//   view.preset("lung"); view.setWindow(-600, 1500); view.setMask("lobes", 0.4); view.setMain("coronal");
//   view.onChange = (state) => ...;          // window, main view, position and HU at the crosshair
//   element.addEventListener("keydown", (event) => view.key(event) && event.preventDefault());
//   medsynViewer.link([view, other]);        // same position, zoom and window
//
// The picture follows radiological convention: the patient's right is on the left; a sagittal view looks to the left.

"use strict";

const medsynViewer = (() => {
  const PLANES = { axial: 0, coronal: 1, sagittal: 2 }; // NiiVue's numbers
  const AXIS = { axial: 2, coronal: 1, sagittal: 0 }; // of voxels in RAS order
  const PRESETS = {
    // level and width in HU
    lung: { level: -600, width: 1500 },
    mediastinum: { level: 40, width: 400 },
    bone: { level: 400, width: 1800 },
  };
  const COLOURS = {
    // label: colour; lobes 1 to 5 as in medsyn.volume.LOBE_NAMES
    lobes: { 1: [86, 180, 233], 2: [0, 114, 178], 3: [230, 159, 0], 4: [240, 228, 66], 5: [213, 94, 0] },
    airway: { 1: [0, 200, 150] },
    vessels: { 1: [204, 60, 130] },
  };
  const OPACITY = { lobes: 0.35, airway: 0.8, vessels: 0.8 };
  const OPTIONS = {
    isRadiologicalConvention: true,
    sagittalNoseLeft: true,
    isOrientationTextVisible: true,
    isCornerOrientationText: true,
    isNearestInterpolation: false,
    multiplanarShowRender: 0,
    dragAndDropEnabled: false,
    logLevel: "silent",
    loadingText: "",
    backColor: [0, 0, 0, 1],
    fontColor: [0.85, 0.85, 0.85, 1],
    crosshairColor: [0.3, 0.75, 1, 0.6],
    crosshairWidth: 0.7,
    crosshairWidthUnit: "mm",
    crosshairGap: 8,
    windowingGainFactor: 2,
    // left: crosshair; with Shift or the middle button: pan; right: window
    mouseEventConfig: { leftButton: { primary: 8, withShift: 3, withCtrl: 3 }, rightButton: 9, centerButton: 3 },
    touchEventConfig: { singleTouch: 8, doubleTouch: 3 },
  };
  const KEYS = {
    l: ["lung window", (view) => view.preset("lung")],
    m: ["mediastinum window", (view) => view.preset("mediastinum")],
    b: ["bone window", (view) => view.preset("bone")],
    v: ["next main view", (view) => view.nextMain()],
    ArrowUp: ["next slice of the main view", (view) => view.step(1)],
    ArrowDown: ["previous slice", (view) => view.step(-1)],
    PageUp: ["10 slices forward", (view) => view.step(10)],
    PageDown: ["10 slices back", (view) => view.step(-10)],
    "+": ["zoom in", (view) => view.zoom(1.2)],
    "-": ["zoom out", (view) => view.zoom(1 / 1.2)],
    "[": ["narrower window", (view) => view.setWindow(view.state().level, view.state().width / 1.1)],
    "]": ["wider window", (view) => view.setWindow(view.state().level, view.state().width * 1.1)],
    ",": ["lower level", (view) => view.setWindow(view.state().level - 20, view.state().width)],
    ".": ["higher level", (view) => view.setWindow(view.state().level + 20, view.state().width)],
    x: ["crosshair on or off", (view) => view.setCrosshair(!view.crosshair)],
    o: ["masks on or off", (view) => view.toggleMasks()],
    r: ["reset position, zoom and window", (view) => view.reset()],
  };

  class View {
    constructor(canvas) {
      this.canvas = canvas;
      this.onChange = () => {};
      this.main = "axial";
      this.crosshair = true;
      this.window = { ...PRESETS.lung };
      this.opacity = { ...OPACITY };
      this.hidden = new Set();
      this.linked = [];
      this.layers = {}; // structure -> place among NiiVue's volumes
      this.location = { mm: null, hu: null };
      this.turn = 0;
    }

    async start() {
      const nv = (this.nv = new niivue.Niivue(OPTIONS));
      nv.keyDownListener = nv.keyUpListener = () => {}; // its own keys clash with ours
      nv.resetBriCon = () => {}; // a double click would change the window
      nv.onLocationChange = (data) => this.moved(data);
      nv.onIntensityChange = (volume) => this.dragged(volume);
      await nv.attachToCanvas(this.canvas);
      new ResizeObserver(() => this.layOut()).observe(this.canvas.parentElement);
      this.layOut();
      return this;
    }

    // Replace what is shown. masks: structure -> bytes. oriented: false hides the letters of a file without orientation.
    // Resolves to false where a later call has overtaken this one.
    async show({ image, masks = {}, oriented = true }) {
      const turn = ++this.turn;
      const load = (bytes, name) => niivue.NVImage.loadFromUrl({ url: bytes, name: `${name}.${suffix(bytes)}` });
      const [ct, ...layers] = await Promise.all([
        load(image, "image"),
        ...Object.entries(masks).map(([name, bytes]) => load(bytes, name)),
      ]);
      if (turn !== this.turn) return false;
      ct.colormap = "gray";
      [ct.cal_min, ct.cal_max] = limits(this.window);
      this.layers = {};
      Object.keys(masks).forEach((name, k) => {
        layers[k].setColormapLabel(labelColours(name));
        layers[k].opacity = this.shownOpacity(name);
        this.layers[name] = k + 1;
      });
      this.nv.volumes = [ct, ...layers]; // at once: addVolume would draw everything again for each
      this.nv.back = ct;
      this.nv.overlays = layers;
      this.nv.opts.isOrientationTextVisible = oriented;
      this.nv.updateGLVolume();
      this.reset(false);
      return true;
    }

    preset(name) {
      this.setWindow(PRESETS[name].level, PRESETS[name].width);
    }

    setWindow(level, width) {
      this.window = { level: Math.round(level), width: Math.max(1, Math.round(width)) };
      const ct = this.nv.volumes[0];
      if (ct) {
        [ct.cal_min, ct.cal_max] = limits(this.window);
        this.nv.refreshLayers(ct, 0);
        this.nv.drawScene();
      }
      this.changed();
    }

    setMain(plane) {
      this.main = plane;
      this.layOut();
      this.changed();
    }

    nextMain() {
      const names = Object.keys(PLANES);
      this.setMain(names[(names.indexOf(this.main) + 1) % names.length]);
    }

    // Move the crosshair by a number of voxels through the slices of the main view: up is cranial, anterior or left.
    step(count) {
      const move = [0, 0, 0];
      move[AXIS[this.main]] = this.main === "sagittal" ? -count : count;
      if (this.nv.volumes.length) this.nv.moveCrosshairInVox(...move);
      this.changed();
    }

    // Zoom around the crosshair.
    zoom(factor) {
      const pan = [...this.nv.scene.pan2Dxyzmm];
      const zoom = Math.min(Math.max(pan[3] * factor, 0.5), 10);
      const mm = this.nv.frac2mm(this.nv.scene.crosshairPos);
      for (let axis = 0; axis < 3; axis++) pan[axis] += (pan[3] - zoom) * mm[axis];
      pan[3] = zoom;
      this.nv.setPan2Dxyzmm(pan);
      this.changed();
    }

    setCrosshair(on) {
      this.crosshair = on;
      this.nv.setCrosshairWidth(on ? OPTIONS.crosshairWidth : 0);
      this.changed();
    }

    // opacity: 0 to 1
    setMask(name, opacity) {
      this.opacity[name] = opacity;
      this.drawMasks();
    }

    showMask(name, on) {
      this.hidden[on ? "delete" : "add"](name);
      this.drawMasks();
    }

    toggleMasks() {
      const names = Object.keys(COLOURS);
      const on = names.every((name) => this.hidden.has(name));
      names.forEach((name) => this.hidden[on ? "delete" : "add"](name));
      this.drawMasks();
    }

    drawMasks() {
      for (const [name, layer] of Object.entries(this.layers)) this.nv.volumes[layer].opacity = this.shownOpacity(name);
      this.nv.updateGLVolume();
      this.changed();
    }

    shownOpacity(name) {
      return this.hidden.has(name) ? 0 : this.opacity[name];
    }

    // Put the crosshair into the middle and undo zoom; the window too unless it is kept.
    reset(window = true) {
      this.nv.scene.pan2Dxyzmm = [0, 0, 0, 1];
      this.nv.scene.crosshairPos = [0.5, 0.5, 0.5];
      if (window) this.preset("lung");
      this.nv.createOnLocationChange();
      this.nv.drawScene();
      this.changed();
    }

    // Do what a key stands for and return whether it stands for anything. Keys for fields of a form are left alone.
    key(event) {
      const typed = event.target.closest?.("input:not([type=checkbox], [type=range]), textarea, select");
      const action = KEYS[event.key.length === 1 ? event.key.toLowerCase() : event.key];
      if (!action || typed || event.ctrlKey || event.metaKey || event.altKey) return false;
      action[1](this);
      return true;
    }

    state() {
      const slice = this.nv.volumes.length ? this.nv.frac2vox(this.nv.scene.crosshairPos) : null;
      return {
        ...this.window,
        preset: Object.keys(PRESETS).find((name) => same(PRESETS[name], this.window)) ?? null,
        main: this.main,
        crosshair: this.crosshair,
        zoom: this.nv.scene.pan2Dxyzmm[3],
        masks: Object.keys(this.layers),
        hidden: [...this.hidden],
        voxel: slice && [...slice],
        ...this.location,
      };
    }

    moved(data) {
      this.location = { mm: [...data.mm].slice(0, 3), hu: data.values[0]?.value ?? null };
      this.changed();
    }

    dragged(ct) {
      if (ct !== this.nv.volumes[0]) return;
      this.window = { level: Math.round((ct.cal_min + ct.cal_max) / 2), width: Math.round(ct.cal_max - ct.cal_min) };
      this.changed();
    }

    changed() {
      for (const other of this.linked) other.follow(this);
      this.onChange(this.state());
    }

    // Take position, zoom, window and main view of a linked view.
    follow(other) {
      if (!this.nv.volumes.length || !other.nv.volumes.length) return;
      other.nv.syncOpts = { "2d": true };
      this.nv.scene.crosshairPos = this.nv.mm2frac(other.nv.frac2mm(other.nv.scene.crosshairPos));
      this.nv.scene.pan2Dxyzmm = [...other.nv.scene.pan2Dxyzmm];
      if (!same(this.window, other.window)) {
        const { linked } = this;
        this.linked = []; // so that the change does not come back
        this.setWindow(other.window.level, other.window.width);
        this.linked = linked;
      }
      if (this.main !== other.main) {
        this.main = other.main;
        this.layOut();
      }
      this.nv.drawScene();
    }

    // The main view takes two thirds; the others stand beside it, or below it on a canvas that is higher than wide.
    layOut() {
      const { clientWidth: width, clientHeight: height } = this.canvas.parentElement;
      const others = Object.keys(PLANES).filter((name) => name !== this.main);
      const places = width >= height ? [[0, 0, 2 / 3, 1], [2 / 3, 0, 1 / 3, 0.5], [2 / 3, 0.5, 1 / 3, 0.5]]
        : [[0, 0, 1, 2 / 3], [0, 2 / 3, 0.5, 1 / 3], [0.5, 2 / 3, 0.5, 1 / 3]];
      this.nv.setCustomLayout(
        [this.main, ...others].map((name, k) => ({ sliceType: PLANES[name], position: places[k] })),
      );
    }
  }

  const same = (a, b) => a.level === b.level && a.width === b.width;
  const limits = ({ level, width }) => [level - width / 2, level + width / 2];
  const suffix = (bytes) => (bytes[0] === 31 && bytes[1] === 139 ? "nii.gz" : "nii");

  function labelColours(name) {
    const labels = Object.entries(COLOURS[name] ?? { 1: [255, 255, 255] });
    const [R, G, B] = [0, 1, 2].map((channel) => [0, ...labels.map(([, colour]) => colour[channel])]);
    return { R, G, B, I: [0, ...labels.map(([label]) => Number(label))], A: [0, ...labels.map(() => 255)] };
  }

  return {
    PRESETS,
    COLOURS,
    OPACITY,
    KEYS: Object.fromEntries(Object.entries(KEYS).map(([key, [text]]) => [key, text])),
    // Return a view on a canvas, which fills its parent element; an Error where the browser has no WebGL 2.
    async open(canvas) {
      if (!document.createElement("canvas").getContext("webgl2")) throw new Error("this browser has no WebGL 2");
      return new View(canvas).start();
    },
    link(views) {
      for (const view of views) view.linked = views.filter((other) => other !== view);
    },
  };
})();

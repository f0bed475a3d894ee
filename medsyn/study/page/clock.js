// The time for which an item is in view, in seconds: not while the page is hidden or paused.

const IDLE_MILLISECONDS = 5 * 60 * 1000;

export class Clock {
  #before = 0;
  #since = null;
  #touched = performance.now();

  constructor(onIdle) {
    for (const kind of ["pointerdown", "pointermove", "keydown", "wheel", "touchstart"]) {
      addEventListener(kind, () => { this.#touched = performance.now(); }, { passive: true, capture: true });
    }
    setInterval(() => {
      if (this.running && performance.now() - this.#touched > IDLE_MILLISECONDS) onIdle();
    }, 1000);
  }

  get running() {
    return this.#since !== null;
  }

  get seconds() {
    return this.#before + (this.running ? (performance.now() - this.#since) / 1000 : 0);
  }

  set(seconds) {
    this.#before = seconds;
    this.#since = null;
  }

  start() {
    if (this.running) return;
    this.#since = performance.now();
    this.#touched = this.#since;
  }

  stop() {
    this.#before = this.seconds;
    this.#since = null;
  }
}

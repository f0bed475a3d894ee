// The two forms: choose one option, or rank several CTs. Both keep their history, so that choices can be undone.

import { make, say } from "./elements.js";

class Form {
  #history = [];

  constructor(item, onChange, stage) {
    Object.assign(this, { item, onChange, stage });
    this.value = this.empty;
  }

  /** Put the form into an element. */
  place(element) {
    element.replaceChildren(...this.build());
  }

  get canUndo() {
    return this.#history.length > 0;
  }

  /** Change the value; `remember` is false for what was chosen before this visit. */
  set(value, remember = true) {
    if (remember) this.#history.push(this.value);
    this.value = value;
    this.show();
    this.onChange();
  }

  undo() {
    if (!this.canUndo) return;
    this.value = this.#history.pop();
    this.show();
    say("Undone.");
    this.onChange();
  }

  clear() {
    if (JSON.stringify(this.value) !== JSON.stringify(this.empty)) this.set(this.empty);
  }
}

/** One option of several. The value is the option's, or null. */
export class Recognition extends Form {
  get empty() {
    return null;
  }

  get complete() {
    return this.value !== null;
  }

  get asksForNote() {
    return this.value === "other";
  }

  get hint() {
    return `Press 1 to ${this.item.options.length}, or click.`;
  }

  build() {
    this.inputs = this.item.options.map(({ value }) => make("input", { type: "radio", name: "option", value }));
    const labels = this.item.options.map(({ label }, index) =>
      make("label", { className: "option" }, this.inputs[index], make("kbd", { ariaHidden: "true" }, String(index + 1)), label));
    const set = make("fieldset", { className: "options" }, make("legend", { className: "for-screen-readers" }, this.item.question), ...labels);
    set.addEventListener("change", (event) => this.set(event.target.value));
    return [set];
  }

  show() {
    for (const input of this.inputs) input.checked = input.value === this.value;
  }

  key(number) {
    const option = this.item.options[number - 1];
    if (option) this.set(option.value);
    if (option) say(`${option.label} chosen.`);
    return Boolean(option);
  }
}

/** A rank for each CT: 1 is the best, CTs may share a rank. The value is a list of ranks, null where none is given. */
export class Ranking extends Form {
  get count() {
    return this.item.volumes.length;
  }

  get empty() {
    return Array(this.count).fill(null);
  }

  get complete() {
    return this.value.every((rank) => rank !== null);
  }

  get asksForNote() {
    return false;
  }

  get hint() {
    const missing = this.value.filter((rank) => rank === null).length;
    const ties = !missing && new Set(this.value).size < this.count;
    if (missing) return `${missing} of ${this.count} CTs without a rank. Press 1 to ${this.count} for the highlighted CT, click a rank, or drag a letter.`;
    return ties ? "Every CT has a rank; some share one." : "Every CT has a rank.";
  }

  letter(index) {
    return String.fromCharCode(65 + index);
  }

  build() {
    const ranks = Array.from({ length: this.count }, (_, index) => index + 1);
    this.chips = ranks.map((_, index) => this.#chip(index));
    this.pool = make("div", { className: "pool", ariaHidden: "true" }, ...this.chips);
    this.slots = ranks.map((rank) => make("div", { className: "slot", data: { rank: String(rank) } },
      make("span", {}, `${rank}${rank === 1 ? " best" : rank === this.count ? " worst" : ""}`)));
    const shelf = make("div", { className: "shelf", ariaHidden: "true" }, ...this.slots);
    this.rows = ranks.map((_, index) => this.#row(index, ranks));
    const rows = make("div", { className: "rows" }, ...this.rows.map(({ set }) => set));
    return [shelf, this.pool, rows];
  }

  show() {
    this.value.forEach((rank, index) => {
      for (const input of this.rows[index].inputs) input.checked = Number(input.value) === rank;
      (rank === null ? this.pool : this.slots[rank - 1]).append(this.chips[index]);
    });
  }

  highlight(active) {
    this.rows.forEach(({ set }, index) => set.classList.toggle("active", index === active));
    this.chips.forEach((chip, index) => chip.classList.toggle("active", index === active));
  }

  /** Rank the highlighted CT and highlight the next one without a rank. */
  key(number) {
    if (number < 1 || number > this.count) return false;
    const { active } = this.stage;
    this.rank(active, number);
    const order = Array.from({ length: this.count }, (_, step) => (active + step) % this.count);
    const next = order.find((index) => this.value[index] === null);
    if (next !== undefined) this.stage.activate(next);
    return true;
  }

  rank(index, rank) {
    if (this.value[index] === rank) return;
    this.set(this.value.map((old, place) => (place === index ? rank : old)));
    say(`CT ${this.letter(index)}: ${rank === null ? "no rank" : `rank ${rank}`}. ${this.hint}`);
  }

  #row(index, ranks) {
    const inputs = ranks.map((rank) => make("input", { type: "radio", name: `rank-${index}`, value: String(rank) }));
    const labels = ranks.map((rank, place) => make("label", {}, inputs[place], String(rank)));
    const set = make("fieldset", { className: "rank" }, make("legend", {}, `CT ${this.letter(index)}`), ...labels);
    set.addEventListener("change", (event) => {
      this.stage.activate(index);
      this.rank(index, Number(event.target.value));
    });
    return { set, inputs };
  }

  /** A letter that is dragged into a rank, or out of it. */
  #chip(index) {
    const chip = make("span", { className: "chip", data: { index: String(index) } }, this.letter(index));
    chip.addEventListener("pointerdown", (down) => {
      down.preventDefault();
      chip.setPointerCapture(down.pointerId);
      this.stage.activate(index);
      const slotAt = (event) => document.elementsFromPoint(event.clientX, event.clientY).find((hit) => hit.matches(".slot"));
      const mark = (slot) => this.slots.forEach((one) => one.classList.toggle("over", one === slot));
      const move = (event) => {
        chip.classList.add("dragged");
        chip.style.translate = `${event.clientX - down.clientX}px ${event.clientY - down.clientY}px`;
        mark(slotAt(event));
      };
      const end = (event) => {
        chip.removeEventListener("pointermove", move);
        chip.classList.remove("dragged");
        chip.style.translate = "";
        mark(null);
        const moved = Math.hypot(event.clientX - down.clientX, event.clientY - down.clientY) > 4;
        if (event.type === "pointerup" && moved) this.rank(index, Number(slotAt(event)?.dataset.rank ?? 0) || null);
      };
      chip.addEventListener("pointermove", move);
      chip.addEventListener("pointerup", end, { once: true });
      chip.addEventListener("pointercancel", end, { once: true });
    });
    return chip;
  }
}

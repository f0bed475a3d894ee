// The course of the study: start, practice, items, review, end.

import * as api from "./api.js";
import { Clock } from "./clock.js";
import { byId, make, paragraphs, say, trouble } from "./elements.js";
import { Ranking, Recognition } from "./forms.js";
import { Stage } from "./stage.js";

const DRAFT_MILLISECONDS = 10_000;
const stage = new Stage();
const clock = new Clock(() => pause("No input for five minutes. "));
let study; // as the server gives it: items in this reader's order, answers and drafts by position
let open = null; // the item in view: {position, item, form, submission, replaces}
let busy = false; // an answer is on its way

const firstOpen = () => study.items.findIndex((_, position) => !study.answers[position]);
const lastPractice = () => study.items.filter((item) => item.practice).length;
const instructions = () => byId("instructions").content.cloneNode(true);

async function load() {
  if (!api.hasToken) return showText("No invitation", ["Open this page with the link of your invitation."]);
  try {
    study = await api.getStudy();
  } catch (error) {
    return showText("No invitation", [`${error.message}. Ask the person who invited you for a new link.`]);
  }
  document.title = study.title;
  byId("title").textContent = study.title;
  return study.finished ? showEnd() : showStart();
}

/** Show a page of text with buttons; strings become paragraphs. */
function showText(title, content, ...buttons) {
  closeItem();
  byId("item").hidden = true;
  byId("progress").hidden = true;
  const parts = content.map((part) => (typeof part === "string" ? make("p", {}, part) : part));
  const heading = make("h2", {}, title);
  byId("text").replaceChildren(heading, ...parts, make("div", { className: "buttons" }, ...buttons));
  byId("text").hidden = false;
  scrollTo(0, 0);
  byId("text").focus();
  say(title);
}

const button = (text, act, className = "main") => make("button", { type: "button", className, onclick: act }, text);

function showStart() {
  const answered = Object.keys(study.answers).length;
  const asked = study.items.filter((item) => !item.practice).length;
  const practice = lastPractice();
  const count = `${asked} ${asked === 1 ? "item" : "items"}${practice ? `, after ${practice} for practice` : ""}`;
  const where = answered ? `You have answered ${answered} of ${study.items.length}.` : "";
  showText(
    answered ? "Welcome back" : "Welcome",
    [
      make("p", { className: "small" }, `Reader ${study.reader}. ${count}. ${where}`),
      ...paragraphs(study.introduction),
      make("h3", {}, "How to use this page"),
      instructions(),
    ],
    button(answered ? "Continue" : practice ? "Begin with practice" : "Begin", next),
  );
}

/** Show the first item without an answer, or the review. */
function next() {
  const position = firstOpen();
  return position < 0 ? showReview() : showItem(position);
}

function showReview() {
  showText(
    "All items are answered",
    ["You can still change the last answers. After you finish, answers no longer change."],
    button("Finish", finish),
    button("Change the last answer", () => showItem(study.items.length - 1), ""),
  );
}

async function finish() {
  if (busy) return;
  busy = true;
  try {
    await api.sendFinish();
    study.finished = true;
    showEnd();
  } catch (error) {
    trouble(error.message);
    await load();
  } finally {
    busy = false;
  }
}

function showEnd() {
  showText("Thank you", ["Your answers are complete and stored. You can close this window."]);
}

async function showItem(position) {
  closeItem();
  const item = study.items[position];
  const given = study.answers[position];
  const draft = study.drafts[position];
  byId("text").hidden = true;
  byId("item").hidden = false;
  byId("item").className = item.task;
  scrollTo(0, 0);
  byId("pause-button").hidden = byId("help-button").hidden = false;
  open = { position, item, replaces: given?.submission ?? null, submission: crypto.randomUUID() };
  const here = open;
  showProgress(position);
  const Kind = item.task === "ranking" ? Ranking : Recognition;
  open.form = new Kind(item, changed, stage);
  open.form.place(byId("choices"));
  restore(open.form, given, draft);
  byId("kind").textContent = item.practice ? "Practice: this answer is not counted" : "";
  byId("question").textContent = item.question;
  byId("previous").hidden = position === 0;
  byId("onward").hidden = !given;
  byId("images").classList.add("loading");
  changed();
  byId("question").focus({ preventScroll: true });
  try {
    const files = await Promise.all(item.volumes.map((name) => api.getVolume(name)));
    if (open !== here) return;
    await stage.show(files, study.window);
  } catch (error) {
    trouble(describe(error));
    return;
  }
  if (open !== here) return;
  byId("images").classList.remove("loading");
  clock.set(Math.max(given?.seconds ?? 0, draft?.seconds ?? 0));
  if (!document.hidden && !byId("pause").open && !byId("help").open) clock.start();
  say(`${byId("progress-text").textContent}. ${item.question}`);
  api.prefetch(study.items[position + 1]?.volumes ?? []);
}

function describe(error) {
  if (error instanceof api.RefusedError) return `The images cannot be loaded: ${error.message}. Reload this page.`;
  if (error.message === "no WebGL 2") return "This browser cannot draw the images: it needs WebGL 2. Try another browser, or switch on graphics acceleration.";
  return `The images cannot be drawn: ${error.message}. Reload this page; your answers are stored.`;
}

/** Fill the form from the draft, which is newer, or from the answer. */
function restore(form, given, draft) {
  let kept = given ? { value: given.content, note: given.note } : { value: form.empty, note: "" };
  try {
    if (draft?.content) kept = JSON.parse(draft.content);
  } catch { /* not a draft of this page */ }
  byId("note").value = kept.note ?? "";
  form.set(kept.value ?? form.empty, false);
}

function showProgress(position) {
  const practice = lastPractice();
  const item = study.items[position];
  const [number, count] = item.practice ? [position + 1, practice] : [position + 1 - practice, study.items.length - practice];
  byId("progress-text").textContent = `${item.practice ? "Practice" : "Item"} ${number} of ${count}`;
  byId("progress-bar").max = study.items.length;
  byId("progress-bar").value = Object.keys(study.answers).length;
  byId("progress").hidden = false;
}

/** Bring the buttons and hints in line with the form. */
function changed() {
  if (!open?.form) return;
  const { form } = open;
  const needsNote = form.asksForNote && byId("note").value.trim() === "";
  byId("note-label").textContent = form.asksForNote ? "What do you see? (needed)" : "Note (optional)";
  byId("note").required = form.asksForNote;
  byId("undo").disabled = !form.canUndo;
  byId("submit").disabled = busy || !form.complete || needsNote;
  byId("submit").textContent = open.replaces ? "Submit the change" : "Submit";
  byId("hint").textContent = needsNote ? "Please write what you see." : form.hint;
  form.highlight?.(stage.active);
  open.touched = true;
}

async function submit() {
  if (busy || byId("submit").disabled || byId("images").classList.contains("loading")) return;
  const { position, form, submission, replaces } = open;
  clock.stop();
  busy = true;
  changed();
  const answer = { content: form.value, note: byId("note").value, seconds: Math.min(86400, clock.seconds) };
  try {
    await api.sendAnswer({ position, submission, replaces, ...answer });
    study.answers[position] = { submission, ...answer };
    delete study.drafts[position];
    open = null; // nothing is left to keep as a draft
    busy = false;
    say("Stored.");
    next();
  } catch (error) {
    busy = false;
    open = null;
    if (error.status === 409) {
      await load();
      trouble(`This answer was not stored: ${error.message}.`);
    } else {
      trouble(`This answer was not stored: ${error.message}. Reload this page.`);
    }
  }
}

/** Keep the time and the choices of the open item. */
function keepDraft() {
  if (!open?.form || busy || byId("images").classList.contains("loading")) return;
  if (!clock.running && !open.touched) return;
  const content = JSON.stringify({ value: open.form.value, note: byId("note").value.slice(0, 1500) });
  const draft = { seconds: Math.min(86400, clock.seconds), content: content.length <= 4000 ? content : "" };
  study.drafts[open.position] = draft;
  api.sendDraft({ position: open.position, ...draft });
  open.touched = clock.running;
}

function closeItem() {
  keepDraft();
  clock.stop();
  open = null;
  trouble("");
  byId("pause-button").hidden = byId("help-button").hidden = true;
  stage.clear();
}

function pause(reason = "") {
  if (!open || byId("pause").open) return;
  clock.stop();
  keepDraft();
  byId("pause-text").dataset.reason = reason;
  byId("pause").showModal();
}

function goOn() {
  if (open && !byId("images").classList.contains("loading") && !document.hidden) clock.start();
}

function isTyping(target) {
  return target.matches("textarea, select, input:not([type=radio], [type=checkbox], [type=range])");
}

function key(event) {
  if (!open?.form || document.querySelector("dialog[open]") || event.altKey || event.metaKey) return;
  if (event.key === "Enter" && event.ctrlKey) {
    event.preventDefault();
    submit();
    return;
  }
  if (event.ctrlKey || isTyping(event.target) || !byId("shortcuts").checked) return;
  if (event.key.startsWith("Arrow") && event.target.matches("input")) return; // radio buttons and sliders use arrows
  const letter = event.key.toLowerCase();
  let done = true;
  if (letter === "u") open.form.undo();
  else if (letter === "p") pause();
  else if (letter === "h" || letter === "?") showHelp();
  else if (/^[1-9]$/.test(letter)) done = open.form.key(Number(letter));
  else done = stage.key(event);
  if (done) event.preventDefault();
}

/** After a choice by mouse or touch, arrow keys scroll the CT again; a radio button in focus would take them as a choice. */
function leaveRadio(event) {
  const isPointer = event.detail > 0; // a click that a key makes has 0
  if (isPointer) setTimeout(() => { if (document.activeElement.matches("input[type=radio]")) document.activeElement.blur(); });
}

function showHelp() {
  clock.stop();
  byId("help").showModal();
}

function bind() {
  byId("how").append(instructions());
  byId("answer").addEventListener("submit", (event) => { event.preventDefault(); submit(); });
  byId("answer").addEventListener("click", leaveRadio);
  byId("note").addEventListener("input", changed);
  byId("undo").addEventListener("click", () => open?.form.undo());
  byId("clear").addEventListener("click", () => open?.form.clear());
  byId("previous").addEventListener("click", () => showItem(open.position - 1));
  byId("onward").addEventListener("click", next);
  byId("pause-button").addEventListener("click", () => pause());
  byId("help-button").addEventListener("click", showHelp);
  byId("resume").addEventListener("click", () => byId("pause").close());
  byId("help-close").addEventListener("click", () => byId("help").close());
  for (const id of ["pause", "help"]) byId(id).addEventListener("close", goOn);
  stage.onActive = (active) => open?.form?.highlight?.(active);
  stage.onLost = () => trouble("The browser stopped drawing. Reload this page; your answers are stored.");
  addEventListener("keydown", key);
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) {
      clock.stop();
      keepDraft();
    } else if (!document.querySelector("dialog[open]")) goOn();
  });
  addEventListener("pagehide", keepDraft);
  addEventListener("beforeunload", (event) => { if (busy) event.preventDefault(); });
  addEventListener("hashchange", () => location.reload()); // another invitation in the same tab
  setInterval(keepDraft, DRAFT_MILLISECONDS);
}

bind();
load();

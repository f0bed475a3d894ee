// What the page asks of the server. The token comes from the fragment of the address and goes into a header only.

import { trouble } from "./elements.js";

const token = decodeURIComponent(location.hash.slice(1));
const headers = { Authorization: `Bearer ${token}` };
const WAITS = [500, 1000, 2000, 4000, 8000];

export const hasToken = token !== "";

/** The server understood the request and refuses it: it makes no sense to ask again. */
export class RefusedError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

const pause = (milliseconds) => new Promise((done) => setTimeout(done, milliseconds));

async function ask(path, options = {}) {
  const reply = await fetch(path, { ...options, headers: { ...headers, ...options.headers } });
  if (reply.ok) return reply;
  if (reply.status >= 500) throw new Error(`the server answers ${reply.status}`);
  const { error } = await reply.json().catch(() => ({ error: "" }));
  throw new RefusedError(reply.status, error || `the server answers ${reply.status}`);
}

/** Ask until there is a reply; say so meanwhile. Only a refusal is an error. */
async function insist(path, options, what) {
  for (let attempt = 0; ; attempt += 1) {
    try {
      const reply = await ask(path, options);
      const content = await reply.arrayBuffer();
      if (attempt) trouble("");
      return content;
    } catch (error) {
      if (error instanceof RefusedError) {
        if (attempt) trouble("");
        throw error;
      }
      trouble(`${what} The server does not answer; trying again. Leave this page open.`);
      await pause(WAITS[Math.min(attempt, WAITS.length - 1)]);
    }
  }
}

const asJson = (bytes) => JSON.parse(new TextDecoder().decode(bytes));
const post = (content) => ({
  method: "POST",
  body: JSON.stringify(content),
  headers: { "Content-Type": "application/json" },
});

export const getStudy = async () => asJson(await insist("api/study", {}, "The study is not loaded yet."));
export const getVolume = (name) => insist(`volumes/${name}`, {}, "The images are not loaded yet.");
export const sendAnswer = (answer) => insist("api/answers", post(answer), "Your answer is not stored yet.");
export const sendFinish = () => insist("api/finish", post({}), "The end is not stored yet.");

/** Keep time and choices of the open item; also while the page closes. A loss costs seconds of time, no answer. */
export function sendDraft(draft) {
  ask("api/drafts", { ...post(draft), keepalive: true }).catch(() => {});
}

/** Load volumes into the browser's cache before they are needed. */
export function prefetch(names) {
  for (const name of names) ask(`volumes/${name}`).then((reply) => reply.arrayBuffer()).catch(() => {});
}

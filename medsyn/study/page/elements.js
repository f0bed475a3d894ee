// Small helpers around the document. Text is only ever set as text, never as markup.

export const byId = (id) => document.getElementById(id);

/** Make an element with properties, data and children; strings become text. */
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "data") Object.assign(element.dataset, value);
    else if (name in element) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

/** Tell a screen reader what has happened. */
export function say(text) {
  byId("status").textContent = text;
}

/** Show what is wrong until `trouble("")`. */
export function trouble(text) {
  byId("trouble").textContent = text;
  byId("trouble").hidden = text === "";
}

/** Split plain text into paragraphs at empty lines. */
export function paragraphs(text) {
  return text.split(/\n\s*\n/).filter((part) => part.trim()).map((part) => make("p", { className: "given" }, part.trim()));
}

// Makes elements. Text is only ever set as text: names come from anywhere, markup in them is shown.

/**
 * @param {string} tag
 * @param {Record<string, any>} [properties] `class`, `on…` handlers, attributes; `null` leaves one out
 * @param {...(Node|string|number|null|undefined|false|any[])} children
 */
export function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "style") Object.assign(element.style, value);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...nodes(children));
  return element;
}

/** @returns {(Node|string)[]} */
function nodes(children) {
  return children.flat(3).filter((child) => child !== null && child !== undefined && child !== false)
    .map((child) => (child instanceof Node ? child : visible(String(child))));
}

/** Control characters would hide what a name is: they are shown by the signs made for that. */
export function visible(text) {
  return text
    .replace(/[\u0000-\u0009\u000b-\u001f]/g, (sign) => String.fromCharCode(0x2400 + sign.charCodeAt(0)))
    .replace(/[\u007f-\u009f\u202a-\u202e\u2066-\u2069]/g, "\u2421");
}

/** Puts new children in place of the old ones. */
export function fill(element, ...children) {
  element.replaceChildren(...nodes(children));
  return element;
}

/** Sets a text only where it changed, so that what a reader selected stays selected. */
export function say(element, text) {
  const shown = visible(String(text));
  if (element.textContent !== shown) element.textContent = shown;
}

/** A list of facts: pairs of a word and what it is. */
export function facts(pairs) {
  return h("dl", { class: "facts" }, pairs.map(([word, what]) =>
    h("div", {}, h("dt", {}, word), h("dd", {}, what))));
}

/** A table with a caption; cells are nodes or texts, `#` before a head marks a column of numbers. */
export function table(caption, heads, rows) {
  const number = heads.map((head) => typeof head === "string" && head.startsWith("#"));
  const kind = (column) => (number[column] ? "number" : null);
  return h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption },
    h("table", {}, h("caption", {}, caption),
      h("thead", {}, h("tr", {}, heads.map((head, column) =>
        h("th", { scope: "col", class: kind(column) }, number[column] ? head.slice(1) : head)))),
      h("tbody", {}, rows.map((row) => h("tr", {}, row.map((cell, column) =>
        h("td", { class: cell instanceof Node && cell.nodeName === "PRE" ? "words" : kind(column) }, cell)))))));
}

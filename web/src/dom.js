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
    if (name.startsWith("on")) listen(element, name.slice(2), value);
    else if (name === "style") Object.assign(element.style, value);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...nodes(children));
  return element;
}

/** What elements do at which event: kept apart, so that an element that stays may be given what a newer one would do. */
const HEARD = new WeakMap();

function listen(element, name, handler) {
  if (!HEARD.has(element)) HEARD.set(element, {});
  HEARD.get(element)[name] = handler;
  element.addEventListener(name, (event) => HEARD.get(element)[name]?.(event));
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

/**
 * Brings an element's children to what is wanted and keeps those that are there already: texts and attributes are
 * changed in place, so that a selection and the keyboard's focus stay where they are. Children with a `data-key` are
 * told apart by it, others by their place and tag. Made for elements of which nobody else holds a part.
 */
export function settle(element, ...children) {
  let at = element.firstChild;
  for (const child of nodes(children)) {
    const wanted = child instanceof Node ? child : document.createTextNode(child);
    let same = at;
    while (same && same !== wanted && !alike(same, wanted)) same = same.nextSibling;
    if (!same) {
      element.insertBefore(wanted, at);
      continue;
    }
    while (at !== same) at = dropped(at);
    if (same !== wanted) bring(same, wanted);
    at = same.nextSibling;
  }
  while (at) at = dropped(at);
  return element;
}

/** Takes a node away; gives the one behind it. */
function dropped(node) {
  const next = node.nextSibling;
  node.remove();
  return next;
}

/** Whether one node can become the other. */
function alike(one, other) {
  return one.nodeName === other.nodeName && one.dataset?.key === other.dataset?.key;
}

function bring(same, wanted) {
  if (!(same instanceof Element)) {
    if (same.data !== wanted.data) same.data = wanted.data;
    return;
  }
  const heard = HEARD.get(wanted) ?? {};
  const known = Object.keys(HEARD.get(same) ?? {});
  for (const name of Object.keys(heard)) if (!known.includes(name)) listen(same, name, heard[name]);
  HEARD.set(same, heard);
  for (const { name } of [...same.attributes]) if (name !== "style" && !wanted.hasAttribute(name)) same.removeAttribute(name);
  for (const { name, value } of wanted.attributes) {
    if (name !== "style" && same.getAttribute(name) !== value) same.setAttribute(name, value);
  }
  // Not as an attribute, which the page's policy forbids.
  if (same.style.cssText !== wanted.style.cssText) same.style.cssText = wanted.style.cssText;
  settle(same, ...wanted.childNodes);
}

/** Says beside a title that what stands there goes on while the page is held. */
export function now() {
  return h("span", { class: "now" }, "now");
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

/** A table with a caption; cells are nodes or texts, `#` before a head marks a column of numbers. A row's `key` tells it apart. */
export function table(caption, heads, rows) {
  const number = heads.map((head) => typeof head === "string" && head.startsWith("#"));
  const kind = (column) => (number[column] ? "number" : null);
  return h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption },
    h("table", {}, h("caption", {}, caption),
      h("thead", {}, h("tr", {}, heads.map((head, column) =>
        h("th", { scope: "col", class: kind(column) }, number[column] ? head.slice(1) : head)))),
      h("tbody", {}, rows.map((row) => h("tr", { "data-key": row.key }, row.map((cell, column) =>
        h("td", { class: cell instanceof Node && cell.nodeName === "PRE" ? "words" : kind(column) }, cell)))))));
}

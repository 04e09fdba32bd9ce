// Asks before something is done, and says what it will do.

import { fill, h } from "./dom.js";

/** Whether the reader wants it. `text` is text, or nodes. What is not `possible` is only said. */
export function confirmed(title, text, possible = true) {
  const dialog = document.getElementById("dialog");
  return new Promise((answer) => {
    const end = (yes) => () => {
      dialog.close();
      answer(yes);
    };
    fill(dialog, h("h2", { id: "dialog-title" }, title), h("div", {}, text),
      h("div", { class: "buttons" },
        possible ? h("button", { class: "strong", id: "dialog-yes", onclick: end(true) }, "Do it") : null,
        h("button", { onclick: end(false) }, possible ? "Leave it" : "Close")));
    dialog.oncancel = () => answer(false);
    dialog.showModal();
  });
}

"use strict";
// Takes over what the server renders each second, changing only what differs,
// so that focus, selection and scrolling stay.

function sameKind(a, b) {
  return a.nodeType === b.nodeType && a.nodeName === b.nodeName && (a.id || "") === (b.id || "");
}

function takeOver(old, fresh) {
  if (old.isEqualNode(fresh)) return;
  if (old.nodeType === Node.TEXT_NODE) {
    old.nodeValue = fresh.nodeValue;
    return;
  }
  for (const { name } of [...old.attributes]) {
    if (!fresh.hasAttribute(name)) old.removeAttribute(name);
  }
  for (const { name, value } of fresh.attributes) {
    if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  }
  takeOverChildren(old, fresh);
}

function takeOverChildren(old, fresh) {
  let at = old.firstChild;
  for (const child of [...fresh.childNodes]) {
    let match = at;
    if (child.id) {
      match = [...old.childNodes].find((c) => c.id === child.id) || null;
    }
    if (match && sameKind(match, child)) {
      if (match !== at) old.insertBefore(match, at);
      else at = at.nextSibling;
      takeOver(match, child);
    } else {
      old.insertBefore(child, at);
    }
  }
  while (at) {
    const next = at.nextSibling;
    at.remove();
    at = next;
  }
}

const live = document.getElementById("live");
const offline = document.getElementById("offline");
const events = new EventSource("events");
events.onmessage = (event) => {
  offline.hidden = true;
  const fresh = document.createElement("main");
  fresh.innerHTML = event.data;
  takeOverChildren(live, fresh);
};
events.onopen = () => { offline.hidden = true; };
events.onerror = () => { offline.hidden = false; };

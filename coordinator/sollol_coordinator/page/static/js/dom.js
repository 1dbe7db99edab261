// Makes elements out of data, and changes what is shown into them. Text goes in as text: nothing here reads markup.

const SVG = "http://www.w3.org/2000/svg";

function fill(element, props, children) {
  for (const [name, value] of Object.entries(props || {})) {
    if (value === null || value === undefined || value === false) continue;
    element.setAttribute(name, value === true ? "" : String(value));
  }
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === false || child === "") continue;
    element.append(child instanceof Node ? child : document.createTextNode(String(child)));
  }
  return element;
}

/** An HTML element. Props are attributes; no listeners: clicks are caught further up, by their data- attributes. */
export function h(tag, props, ...children) {
  return fill(document.createElement(tag), props, children);
}

/** The same in SVG. */
export function s(tag, props, ...children) {
  return fill(document.createElementNS(SVG, tag), props, children);
}

/** A link to a page of ours. */
export function link(path, params, props, ...children) {
  const query = new URLSearchParams(params || {}).toString();
  return h("a", { href: query ? `${path}?${query}` : path, ...(props || {}) }, ...children);
}

/** Make `parent` show these nodes, changing as little as possible, so that focus, selection and scrolling stay. */
export function show(parent, ...nodes) {
  patch(parent, nodes.flat(Infinity).filter((node) => node instanceof Node));
}

const keyOf = (node) => (node.nodeType === 1 ? node.getAttribute("data-key") : null);

function isLike(old, next) {
  return old.nodeType === next.nodeType && old.nodeName === next.nodeName && keyOf(old) === keyOf(next);
}

function patch(parent, wanted) {
  const keyed = new Map();
  for (const child of parent.childNodes) {
    const key = keyOf(child);
    if (key !== null) keyed.set(key, child);
  }
  // What goes away goes first: otherwise all behind it would be moved, and lose the focus.
  const stay = new Set(wanted.map(keyOf));
  for (const [key, child] of keyed) if (!stay.has(key)) child.remove();
  let at = parent.firstChild;
  for (const next of wanted) {
    const key = keyOf(next);
    let old = key !== null ? keyed.get(key) : at;
    if (old && !isLike(old, next)) old = null;
    if (!old) {
      parent.insertBefore(next, at);
      continue;
    }
    if (old === at) at = at.nextSibling;
    else parent.insertBefore(old, at);
    keyed.delete(key);
    change(old, next);
  }
  while (at) {
    const gone = at;
    at = at.nextSibling;
    gone.remove();
  }
}

function change(old, next) {
  if (old.nodeType === 3) {
    if (old.data !== next.data) old.data = next.data;
    return;
  }
  if (old.nodeType !== 1 || old.hasAttribute("data-keep")) return;
  for (const { name } of [...old.attributes]) {
    if (name !== "open" && !next.hasAttribute(name)) old.removeAttribute(name);
  }
  for (const { name, value } of [...next.attributes]) {
    if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  }
  patch(old, [...next.childNodes]);
}

/** Small helpers over the document. Text from outside goes in as text, never as markup. */

/**
 * The element of an id.
 * @param {string} id
 */
export const byId = (id) => document.getElementById(id);

/**
 * An element with attributes and children; strings become text.
 * @param {string} tag
 * @param {Record<string, string>} [attributes]
 * @param {...(Node|string)} children
 */
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

/**
 * A copy of a template's only element, and its parts by their `data-part`.
 * @param {string} id
 * @returns {{root: HTMLElement, parts: Record<string, HTMLElement>}}
 */
export function stamp(id) {
  const root = byId(id).content.firstElementChild.cloneNode(true);
  const parts = {};
  for (const each of root.querySelectorAll("[data-part]")) parts[each.dataset.part] = each;
  return { root, parts };
}

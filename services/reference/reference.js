"use strict";
// Draws openapi.json. All of its text goes in as text, never as markup.

const METHODS = ["get", "post", "put", "patch", "delete"];

function element(name, attributes, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children.filter((child) => child !== null));
  return made;
}

// Paragraphs, with `code` between backticks.
function prose(text) {
  return (text || "").split(/\n\n+/).filter(Boolean).map((paragraph) =>
    element("p", {}, ...paragraph.split("`").map((part, i) => (i % 2 ? element("code", {}, part) : part))));
}

function words(text) {
  return (text || "").split("`").map((part, i) => (i % 2 ? element("code", {}, part) : part));
}

function resolved(api, schema) {
  while (schema && schema.$ref) schema = schema.$ref.slice(2).split("/").reduce((at, key) => at[key], api);
  return schema || {};
}

function nameOf(schema) {
  return schema.$ref ? schema.$ref.split("/").pop() : null;
}

function kind(api, schema) {
  if (schema.$ref) {
    const target = resolved(api, schema);
    return target.type === "object" || target.properties ? nameOf(schema) : kind(api, target);
  }
  if (schema.enum) return schema.enum.map((value) => JSON.stringify(value)).join(" | ");
  if ("const" in schema) return JSON.stringify(schema.const);
  const branches = schema.anyOf || schema.oneOf;
  if (branches) return branches.map((branch) => kind(api, branch)).join(" | ");
  if (schema.type === "array") return `[${kind(api, schema.items || {})}]`;
  return schema.type || "any";
}

function limits(schema) {
  const flat = [schema, ...(schema.anyOf || [])];
  const said = [];
  for (const [key, sign] of [["minimum", "≥"], ["exclusiveMinimum", ">"], ["maximum", "≤"], ["exclusiveMaximum", "<"]])
    for (const each of flat) if (each[key] !== undefined) said.push(`${sign} ${each[key]}`);
  for (const each of flat) if (each.maxLength) said.push(`≤ ${each.maxLength} characters`);
  if (schema.default !== undefined && schema.default !== null) said.push(`default ${JSON.stringify(schema.default)}`);
  return said.join(", ");
}

function fields(api, schema) {
  const object = resolved(api, schema);
  if (!object.properties) return null;
  const required = new Set(object.required || []);
  const rows = Object.entries(object.properties).map(([name, field]) => element("tr", {},
    element("td", {}, element("code", {}, name), required.has(name) ? "" : element("span", { class: "quiet" }, " optional")),
    element("td", {}, element("code", {}, kind(api, field))),
    element("td", {}, ...words(field.description || resolved(api, field).description), " ",
      element("span", { class: "quiet" }, limits(field)))));
  return element("table", {}, element("thead", {}, element("tr", {}, ...["Field", "Type", "Meaning"].map((title) =>
    element("th", {}, title)))), element("tbody", {}, ...rows));
}

// The schemas of objects that a schema leads to, itself first.
function inside(api, schema, found = new Map()) {
  const name = nameOf(schema);
  if (name && found.has(name)) return found;
  const target = resolved(api, schema);
  if (name && target.properties) found.set(name, schema);
  for (const next of [...Object.values(target.properties || {}), target.items, ...(target.anyOf || []), ...(target.oneOf || [])])
    if (next) inside(api, next, found);
  return found;
}

function example(api, content) {
  if (content.example !== undefined) return [content.example];
  return resolved(api, content.schema || {}).examples || [];
}

function shown(value) {
  return element("pre", {}, typeof value === "string" ? value : JSON.stringify(value, null, 2));
}

function contents(api, content, wide) {
  return Object.entries(content || {}).flatMap(([type, each]) => [
    element("p", { class: "quiet" }, type),
    ...(wide ? [...inside(api, each.schema || {})].map(([name, schema], index) => element("details",
      index ? {} : { open: "" }, element("summary", {}, name), ...prose(resolved(api, schema).description), fields(api, schema))) : []),
    ...example(api, each).map(shown)]);
}

function headers(response) {
  const names = Object.keys(response.headers || {});
  return names.length ? element("p", { class: "quiet" }, `Headers: ${names.join(", ")}`) : null;
}

function operation(api, path, method, said) {
  const answers = Object.entries(said.responses).map(([status, response]) => element("details",
    status.startsWith("2") ? { open: "" } : {}, element("summary", {}, `${status} `, ...words(response.description)),
    headers(response), ...contents(api, response.content, status.startsWith("2"))));
  const parameters = (said.parameters || []).map((each) => element("li", {}, element("code", {}, each.name),
    ` in ${each.in}, ${kind(api, each.schema || {})} `, ...words(each.description)));
  return element("section", { id: `${method}-${path}` },
    element("h3", {}, element("span", { class: "method" }, method.toUpperCase()), path),
    ...prose(said.description),
    parameters.length ? element("ul", {}, ...parameters) : null,
    said.requestBody ? element("h4", {}, "Request") : null,
    ...contents(api, (said.requestBody || {}).content, true),
    element("h4", {}, "Responses"), ...answers);
}

function draw(api) {
  const main = document.getElementById("document");
  const nav = document.getElementById("contents");
  const tags = new Map((api.tags || []).map((tag) => [tag.name, { ...tag, operations: [] }]));
  for (const [path, methods] of Object.entries(api.paths))
    for (const method of METHODS.filter((name) => name in methods)) {
      const [name] = methods[method].tags || ["other"];
      if (!tags.has(name)) tags.set(name, { name, operations: [] });
      tags.get(name).operations.push([path, method, methods[method]]);
    }
  document.title = `${api.info.title}: API`;
  main.replaceChildren(element("h1", {}, `${api.info.title} API`), ...prose(api.info.description),
    element("p", {}, element("a", { href: "openapi.json" }, "openapi.json")));
  for (const tag of tags.values()) {
    main.append(element("h2", {}, tag.name), ...prose(tag.description));
    nav.append(element("strong", {}, tag.name));
    for (const [path, method, said] of tag.operations) {
      main.append(operation(api, path, method, said));
      nav.append(element("a", { href: `#${method}-${path}` }, `${method.toUpperCase()} ${path}`));
    }
  }
}

fetch("openapi.json")
  .then((response) => (response.ok ? response.json() : Promise.reject(new Error(`status ${response.status}`))))
  .then(draw)
  .catch((error) => document.getElementById("document").replaceChildren(
    element("p", {}, `The document cannot be read: ${error.message}.`)));

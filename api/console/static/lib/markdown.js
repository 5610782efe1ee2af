// Markdown of a model to HTML of ours. This is the one place where text becomes HTML, and DOMPurify has the last word.
//
// Raw HTML in the text is shown as text. Pictures are links: one that loads by itself tells its host that it was looked at.
import { lexer, parser, Renderer } from "../vendor/marked/marked.esm.js";

const DOMPurify = globalThis.DOMPurify;

const escaped = (text) => text.replace(/[&<>"]/g, (one) => `&#${one.charCodeAt(0)};`);

const renderer = new Renderer();
renderer.html = ({ text }) => escaped(text);
renderer.image = ({ href, text }) => `<a href="${escaped(href ?? "")}">picture: ${escaped(text || href || "")}</a>`;
const OPTIONS = { gfm: true, breaks: false, renderer };

const ALLOWED = {
  ALLOWED_TAGS: "a b blockquote br code del em h1 h2 h3 h4 h5 h6 hr i input li ol p pre s span strong sub sup table tbody td th thead tr ul".split(" "),
  ALLOWED_ATTR: ["href", "title", "start", "align", "type", "checked", "disabled", "target", "rel"],
  ALLOWED_URI_REGEXP: /^(?:https?:|mailto:)/i,
  ALLOW_DATA_ATTR: false,
  ALLOW_ARIA_ATTR: false,
  RETURN_TRUSTED_TYPE: true,
};

DOMPurify.addHook("afterSanitizeAttributes", (node) => {
  if (node.tagName === "A") {
    node.setAttribute("target", "_blank");
    node.setAttribute("rel", "noopener noreferrer nofollow");
  }
  if (node.tagName === "INPUT") {
    node.setAttribute("type", "checkbox");
    node.setAttribute("disabled", "");
    node.setAttribute("aria-label", "task");
  }
});

const toHtml = (tokens) => DOMPurify.sanitize(parser(tokens, OPTIONS), ALLOWED);
const TOGETHER = 40; // blocks that share one element, so that the browser can leave out those that are not in view

/** Draws a text that grows into an element: what is behind is drawn once, and only its last block again and again. */
export class GrowingMarkdown {
  constructor(element) {
    this.element = element;
    this.clear();
  }

  clear() {
    this.element.replaceChildren();
    this.done = 0;
    this.start = "";
    this.tail = null;
  }

  /** What is too deep for the parser is shown as it came. */
  draw(text) {
    try {
      this.parse(text);
    } catch {
      this.clear();
      this.element.append(Object.assign(document.createElement("pre"), { className: "raw", textContent: text }));
    }
  }

  parse(text) {
    const clean = text.replace(/\r\n?/g, "\n");
    if (!clean.startsWith(this.start)) this.clear();
    let tokens = lexer(clean.slice(this.done), { gfm: true });
    const settled = tokens.slice(0, -2); // the last but one may be the space between it and what comes
    const links = tokens.links;
    while (settled.length) {
      const some = settled.splice(0, TOGETHER);
      this.done += some.reduce((sum, token) => sum + token.raw.length, 0);
      this.append(some);
    }
    this.start = clean.slice(0, this.done);
    tokens = tokens.slice(-2);
    tokens.links = links;
    this.tail ??= this.element.appendChild(document.createElement("div"));
    this.tail.innerHTML = toHtml(tokens);
  }

  append(tokens) {
    const part = document.createElement("div");
    part.className = "part";
    part.innerHTML = toHtml(tokens);
    this.element.insertBefore(part, this.tail);
  }
}

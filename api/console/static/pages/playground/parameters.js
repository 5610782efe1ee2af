// The parameters of a request as fields, and the switches that break a fake model on purpose.
import { html } from "../../lib/dom.js";
import { Field, Switch, Typed } from "../../ui/parts.js";

const NUMBERS = [["temperature", 0.1], ["top_p", 0.05], ["max_tokens", 1], ["seed", 1], ["n", 1], ["presence_penalty", 0.1], ["frequency_penalty", 0.1], ["max_tokens_per_s", 1]];
const CHOICES = [["reasoning_effort", ["minimal", "low", "medium", "high"]], ["on_interruption", ["fail", "restart"]], ["on_disconnect", ["continue", "cancel"]], ["tool_choice", ["auto", "none", "required"]]];

export function Parameters({ form, change }) {
  const set = (name, value) =>
    change(({ parameters }) => {
      const { [name]: _, ...others } = parameters;
      return { parameters: value === "" || value === undefined ? others : { ...others, [name]: value } };
    });
  const asJson = (name) => (text) => set(name, text.trim() ? JSON.parse(text) : "");
  return html`<div class="stack">
    <div class="fields">
      ${NUMBERS.map(([name, step]) => html`<${Field} label=${name} key=${name}><${Typed} type="number" step=${step} value=${String(form.parameters[name] ?? "")} take=${(text) => set(name, text === "" ? "" : Number(text))} /><//>`)}
      ${CHOICES.map(([name, options]) => html`<${Field} label=${name} key=${name}><select class="input" value=${typeof form.parameters[name] === "string" ? form.parameters[name] : ""} onChange=${(event) => set(name, event.target.value)}><option value="">–</option>${options.map((one) => html`<option>${one}</option>`)}</select><//>`)}
    </div>
    <${Field} label="tools, a list in JSON"><${Typed} as="textarea" class="input mono" rows="2" spellcheck="false" take=${asJson("tools")} value=${form.parameters.tools ? JSON.stringify(form.parameters.tools, null, 2) : ""} /><//>
    <${Field} label="metadata, an object in JSON"><${Typed} as="textarea" class="input mono" rows="1" spellcheck="false" take=${asJson("metadata")} value=${form.parameters.metadata ? JSON.stringify(form.parameters.metadata) : ""} /><//>
  </div>`;
}

const FAULTS = { well: {}, slow: { first_ms: "3000", rate: "5" }, cut: { cut: "20", rate: "20" }, error: { error: "503" } };
const FAULTY = ["first_ms", "cut", "error"];

/** The options of a fake model stand after its name, like a query. */
export function BreakIt({ model, set }) {
  const [name, text = ""] = model.split("?");
  const options = new URLSearchParams(text);
  const now = options.has("error") ? "error" : options.has("cut") ? "cut" : options.has("first_ms") ? "slow" : "well";
  const choose = (fault) => {
    for (const option of FAULTY) options.delete(option);
    if (now === "slow") options.delete("rate");
    for (const [option, value] of Object.entries(FAULTS[fault])) options.set(option, value);
    set(options.size ? `${name}?${options}` : name);
  };
  return html`<div class="row"><span class="soft">Break it</span><${Switch} label="Break it" value=${now} onChange=${choose} options=${[["well", "no"], ["slow", "slow"], ["cut", "cut"], ["error", "503"]]} /></div>`;
}

// What the programs beside this file share: harness.py in JavaScript.

export const [baseURL, apiKey] = process.argv.slice(2);
export const messages = [{ role: "user", content: "one two three" }];
export const TEXT = "w0 w1 w2 w3 w4 ";
export const THOUGHT = "Let me see. ";
export const ANSWER = "It is 4.";
export const CALLS = [["c1", "f", { x: 1 }], ["c2", "g", { x: 2 }]];
export const PARAMETERS = { type: "object", properties: { x: { type: "integer" } }, required: ["x"] };
export const TOOLS = ["f", "g"].map((name) => ({ type: "function", function: { name, parameters: PARAMETERS } }));

// Runs the checks, which are the functions of an object, and prints the report.
export async function run(checks, version) {
  const report = { version };
  for (const [name, check] of Object.entries(checks)) {
    try {
      await check();
      report[`check_${name}`] = null;
    } catch (error) {
      report[`check_${name}`] = String(error.stack ?? error);
    }
  }
  console.log(JSON.stringify(report));
}

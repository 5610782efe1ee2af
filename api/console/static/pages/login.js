// Signing in: the key is sent once, and this browser has a cookie from then on, which no script can read.
import { html, useState } from "../lib/dom.js";
import { learnSession, post, signed, signedIn } from "../lib/api.js";
import { go, usePlace } from "../lib/router.js";
import { Problem } from "../ui/parts.js";

export function Login() {
  const { path } = usePlace();
  const [problem, setProblem] = useState(null);
  const [busy, wait] = useState(false);
  const send = async (event) => {
    event.preventDefault();
    wait(true);
    try {
      await post("/console/session", { key: new FormData(event.currentTarget).get("key").trim() });
      signed("yes");
      await learnSession();
      if (path === "/login") go("/");
    } catch (error) {
      signedIn.set("no");
      setProblem(error);
    }
    wait(false);
  };
  return html`<form class="login card" onSubmit=${send}>
    <h1>Sign in to Streamspool</h1>
    <p class="soft">Send one of this server's keys once. It is not kept in this browser: a cookie stands for it, until you sign out, the key is revoked, or nothing is done for some hours.</p>
    <label class="field"><span>Key</span><input class="input mono" name="key" type="password" autocomplete="current-password" required autofocus spellcheck="false" /></label>
    <${Problem} error=${problem} />
    <button class="button main" disabled=${busy}>Sign in</button>
    <p class="soft">No key yet? Who runs this server makes one: <code>streamspool keys create --tenant NAME</code></p>
  </form>`;
}

// The panel that breaks things: the line between the page and the relay, and Redis. What is broken is the demo's to
// know, and the same in every tab; all of it mends itself after a while.

const PATH = "/demo/outages";

const $ = (id) => document.getElementById(id);

let mendsAt = null;
let timer;

async function ask(change) {
  const options = change && {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(change),
  };
  try {
    const response = await fetch(PATH, options);
    const document = await response.json();
    if (response.ok) show(document);
    else $("mending").textContent = document.error.message;
  } catch {
    $("mending").textContent = "The demo does not answer: is it still running?";
  }
}

function show({ line, redis, mendsInSeconds }) {
  const isFrozen = redis === "frozen";
  $("outages").hidden = false;
  $("outages").querySelector(`[value="${line}"]`).checked = true;
  $("freeze").setAttribute("aria-pressed", isFrozen);
  $("freeze").textContent = isFrozen ? "Let Redis go on" : "Freeze Redis";
  mendsAt = mendsInSeconds === null ? null : Date.now() + 1000 * mendsInSeconds;
  count();
}

function count() {
  clearTimeout(timer);
  $("mending").textContent = "";
  if (mendsAt === null) return;
  const seconds = Math.ceil((mendsAt - Date.now()) / 1000);
  if (seconds <= 0) return void ask();
  $("mending").textContent = `Mends itself in ${seconds} s.`;
  timer = setTimeout(count, 1000);
}

/** Show the panel, and keep it true. */
export function watchOutages() {
  for (const choice of $("outages").querySelectorAll("[name=line]")) {
    choice.addEventListener("change", () => ask({ line: choice.value }));
  }
  $("freeze").addEventListener("click", () => {
    const isFrozen = $("freeze").getAttribute("aria-pressed") === "true";
    ask({ redis: isFrozen ? "running" : "frozen" });
  });
  // Another tab may have broken or mended something.
  document.addEventListener("visibilitychange", () => document.hidden || ask());
  ask();
}

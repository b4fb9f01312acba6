// Looks again every few seconds and puts in what has changed, part by part: a part in which a
// person types, or has the focus, stays as it is, and so does the place on the page.
const every = 1000 * Number(document.documentElement.dataset.again);
const button = document.getElementById("pause");
const told = document.getElementById("told");
let paused = false;

button.hidden = false;
button.addEventListener("click", () => {
  paused = !paused;
  button.setAttribute("aria-pressed", String(paused));
  told.textContent = paused ? "Paused." : "";
});

async function again() {
  if (paused || document.hidden) return;
  let text;
  try {
    const answer = await fetch("/", { cache: "no-store" });
    if (!answer.ok) throw new Error(answer.status);
    text = await answer.text();
  } catch {
    told.textContent = "No answer: this page may be out of date.";
    return;
  }
  told.textContent = "";
  const fresh = new DOMParser().parseFromString(text, "text/html");
  document.title = fresh.title;
  for (const part of document.querySelectorAll("[data-part]")) {
    const other = fresh.querySelector(`[data-part="${part.dataset.part}"]`);
    const busy = part.contains(document.activeElement) ||
      [...part.querySelectorAll("input[type=password]")].some((field) => field.value);
    if (other && !busy && part.innerHTML !== other.innerHTML) part.replaceChildren(...other.childNodes);
  }
}
setInterval(again, every);

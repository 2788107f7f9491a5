// Prompts and completions are untrusted. They only ever become text: nothing here sets innerHTML.
const element = (tag, name, text) => {
  const made = document.createElement(tag);
  if (name) made.className = name;
  if (text !== undefined) made.textContent = text;
  return made;
};

const BATCH = 50;
const { names, sides, verdicts, rows } = read("completion-data");
const form = document.getElementById("filters"), list = document.getElementById("completions");
const more = document.getElementById("more"), count = document.getElementById("count");
const STEERED = 1;
let matching = [], shown = 0;

function answer(row, i) {
  const [text, verdict, garbled] = row.answers[i];
  const made = element("div", "answer " + verdict);
  const head = element("dt", "", names[i]);
  head.append(element("span", "verdict", verdicts[verdict] ?? verdict));
  if (garbled) head.append(element("span", "verdict", "garbled"));
  made.append(head, element("dd", text ? "" : "muted", text || "(empty)"));
  return made;
}

function card(row) {
  const made = element("li");
  const prompt = element("p", "prompt", row.prompt);
  prompt.prepend(element("span", "tag", sides[row.side]));
  if (row.category) prompt.append(element("span", "tag", row.category));
  const answers = element("dl");
  answers.append(...looked().map((i) => answer(row, i)));
  made.append(prompt, answers);
  return made;
}

const looked = () => (form.condition.value ? [Number(form.condition.value)] : names.map((_, i) => i));

function showMore() {
  list.append(...matching.slice(shown, shown + BATCH).map(card));
  shown = Math.min(shown + BATCH, matching.length);
  more.hidden = shown === matching.length;
  more.textContent = `Show ${Math.min(BATCH, matching.length - shown)} more`;
  const some = shown < matching.length ? `, the first ${shown} shown` : "";
  count.textContent = `${matching.length} of ${rows.length} prompts${some}`;
}

function filter() {
  const words = form.words.value.trim().toLowerCase();
  const judged = form.condition.value ? Number(form.condition.value) : STEERED;
  matching = rows.filter((row) =>
    (!form.side.value || row.side === form.side.value) &&
    (!form.category?.value || row.category === form.category.value) &&
    (!form.verdict.value || row.answers[judged][1] === form.verdict.value ||
      (form.verdict.value === "garbled" && row.answers[judged][2])) &&
    (!words || [row.prompt, ...looked().map((i) => row.answers[i][0])].some((text) => text.toLowerCase().includes(words))));
  list.replaceChildren();
  shown = 0;
  showMore();
}

form.addEventListener("input", filter);
form.addEventListener("submit", (event) => event.preventDefault());
form.addEventListener("reset", () => setTimeout(filter)); // after the fields are empty
more.addEventListener("click", () => {
  const next = shown;
  showMore();
  const first = list.children[next]; // where the keyboard goes on reading
  first.tabIndex = -1;
  first.focus();
});
filter();

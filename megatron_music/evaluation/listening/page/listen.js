"use strict";
const at = (id) => document.getElementById(id);
const sides = ["a", "b"];
const CHOICES = [["a", "A is better"], ["b", "B is better"], ["tie", "no difference"]];
let state = null;
let heard = { a: 0, b: 0 };
let sending = false;

function element(tag, text, attributes = {}) {
  const made = document.createElement(tag);
  made.textContent = text;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

async function ask(address, options) {
  try {
    const answer = await fetch(address, options);
    if (!answer.ok) throw new Error(await answer.text());
    show(await answer.json());
  } catch (error) {
    at("error").textContent = error instanceof TypeError ? "The server does not answer. Is it still running?" : error.message;
    at("error").hidden = false;
  }
}

function show(next) {
  state = next;
  heard = { a: 0, b: 0 };
  at("error").hidden = true;
  at("who").hidden = next.rater !== null;
  at("pair").hidden = !next.pair;
  at("end").hidden = next.rater === null || Boolean(next.pair);
  at("progress").textContent = next.rater === null ? "" : next.pair ? `${next.rater}: pair ${next.done + 1} of ${next.of}` : `${next.rater}: ${next.done} of ${next.of} pairs`;
  for (const side of sides) {
    if (next.pair) at(side).src = next[side];
    else at(side).removeAttribute("src");
  }
  if (!next.pair) return;
  at("lyrics").hidden = !next.lyrics.length;
  at("words").replaceChildren(...next.lyrics.map((text) => element("div", text)));
  at("aspects").replaceChildren(...next.aspects.map(question));
  scrollTo(0, 0);
  check();
}

function question({ name, question }, number) {
  const field = document.createElement("fieldset");
  const legend = document.createElement("legend");
  legend.append(element("b", name), " ", element("span", question));
  const choices = element("div", "", { class: "choices" });
  for (const [value, words] of CHOICES) {
    const label = document.createElement("label");
    label.append(element("input", "", { type: "radio", name: `aspect-${number}`, value }), words);
    choices.append(label);
  }
  field.append(legend, choices);
  return field;
}

function choices() {
  const made = {};
  state.aspects.forEach(({ name }, number) => {
    const chosen = document.querySelector(`input[name="aspect-${number}"]:checked`);
    if (chosen) made[name] = chosen.value;
  });
  return made;
}

function check() {
  const unheard = sides.filter((side) => !heard[side]).map((side) => side.toUpperCase());
  const left = state.aspects.length - Object.keys(choices()).length;
  const todo = [];
  if (unheard.length) todo.push(`hear ${unheard.join(" and ")}`);
  if (left) todo.push(left === 1 ? "answer one more question" : `answer ${left} more questions`);
  at("todo").textContent = todo.length ? `Still to do: ${todo.join(", ")}.` : "";
  at("next").disabled = sending || todo.length > 0;
}

for (const side of sides) {
  const audio = at(side);
  let before = 0;
  audio.addEventListener("play", () => {
    before = audio.currentTime;
    at(side === "a" ? "b" : "a").pause();
  });
  for (const event of ["timeupdate", "pause", "ended"]) {
    audio.addEventListener(event, () => {
      const passed = audio.currentTime - before;
      before = audio.currentTime;
      // A jump is not heard.
      if (passed > 0 && passed < 2 && !audio.seeking) heard[side] += passed;
      if (state && state.pair) check();
    });
  }
  audio.addEventListener("seeking", () => { before = audio.currentTime; });
}

at("who").addEventListener("submit", (event) => {
  event.preventDefault();
  ask(`/next?rater=${encodeURIComponent(at("name").value)}`);
});

at("aspects").addEventListener("change", check);

at("pair").addEventListener("submit", async (event) => {
  event.preventDefault();
  if (at("next").disabled) return;
  sending = true;
  for (const side of sides) at(side).pause();
  check();
  const body = { rater: state.rater, pair: state.pair, choices: choices(), heard_s: heard };
  await ask("/answers", { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });
  sending = false;
  if (state.pair) check();
});

ask("/next");

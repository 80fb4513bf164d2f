// The problems of the page: filter, search, page through; what is shown is in the address. Untrusted text only ever
// becomes a text node or a plain attribute of an element made here.
"use strict";
(function () {
  const PAGE_SIZE = 10;
  const source = document.getElementById("data");
  const data = JSON.parse(source.textContent);
  const names = { after: source.dataset.model, before: source.dataset.baseline };
  const form = document.getElementById("controls");
  const list = document.getElementById("rows");
  const fields = ["outcome", "benchmark", "verdict", "category", "q"];
  let state, found;

  const keyOf = (axis, value) => axis + " = " + value;
  const hasVerdict = (row, verdict) => row.after.some((c) => c.verdict === verdict);
  const isDisputed = (row) => row.after.some((c) => c.official !== c.correct);
  for (const row of data.rows) {
    const answers = [...row.after, ...(row.before || [])].map((c) => c.text + "\n" + (c.extracted || ""));
    row.haystack = [row.id, row.question, ...row.choices, row.gold, ...answers].join("\n").toLowerCase();
    row.keys = Object.entries(row.categories).map(([axis, value]) => keyOf(axis, value));
  }

  // The address: #outcome=fixed&benchmark=NAME&verdict=wrong&axis=A&value=V&q=words&page=2, or #item=NAME/ID.
  function fromAddress() {
    const wanted = new URLSearchParams(location.hash.slice(1));
    const next = { page: Math.max(1, parseInt(wanted.get("page"), 10) || 1), item: wanted.get("item") || "" };
    for (const field of fields) next[field] = wanted.get(field) || "";
    if (wanted.get("axis")) next.category = keyOf(wanted.get("axis"), wanted.get("value") || "");
    const isOurs = [...fields, "page", "item", "axis"].some((key) => wanted.has(key));
    if (state && !isOurs && location.hash) return; // a place on the page, not a choice of rows
    state = next;
    fill();
    show();
    if (state.item) focusRow(list.querySelector(".row.wanted"));
    else if (isOurs) document.getElementById("gallery").scrollIntoView();
  }

  function toAddress() {
    const wanted = new URLSearchParams();
    for (const field of fields) if (state[field]) wanted.set(field, state[field]);
    if (state.page > 1) wanted.set("page", state.page);
    history.replaceState(null, "", "#" + wanted);
  }

  // The controls say what the state says; a choice that the rows do not offer is dropped.
  function fill() {
    const nameOf = new Map(data.benchmarks.map((b) => [b.name, b.title]));
    options("benchmark", [...nameOf.keys()], (name) => nameOf.get(name));
    const inside = data.rows.filter((row) => !state.benchmark || benchmarkOf(row).name === state.benchmark);
    options("verdict", [...new Set(inside.flatMap((row) => row.after.map((c) => c.verdict)))].sort(), words);
    options("category", [...new Set(inside.flatMap((row) => row.keys))].sort(), (key) => key);
    const radios = [...form.elements.outcome];
    const radio = radios.find((r) => r.value === state.outcome) || radios[0];
    radio.checked = true;
    state.outcome = radio.value;
    form.elements.q.value = state.q;
  }

  function options(field, values, label) {
    const select = form.elements[field];
    select.replaceChildren(new Option("all", ""), ...values.map((value) => new Option(label(value), value)));
    if (!values.includes(state[field])) state[field] = "";
    select.value = state[field];
    select.disabled = values.length === 0;
  }

  function show() {
    const needle = state.q.trim().toLowerCase();
    const most = data.rows.filter((row) =>
      (!state.benchmark || benchmarkOf(row).name === state.benchmark) &&
      (!state.verdict || hasVerdict(row, state.verdict)) &&
      (!state.category || row.keys.includes(state.category)) &&
      (!needle || row.haystack.includes(needle)));
    const isOutcome = (row, outcome) => !outcome || (outcome === "disputed" ? isDisputed(row) : row.outcome === outcome);
    for (const radio of form.elements.outcome) {
      radio.nextElementSibling.querySelector("b").textContent = most.filter((row) => isOutcome(row, radio.value)).length;
    }
    found = most.filter((row) => isOutcome(row, state.outcome));
    if (state.item) {
      const place = found.findIndex((row) => addressOf(row) === state.item);
      if (place >= 0) state.page = Math.floor(place / PAGE_SIZE) + 1;
    }
    const pages = Math.max(1, Math.ceil(found.length / PAGE_SIZE));
    state.page = Math.min(state.page, pages);
    const start = (state.page - 1) * PAGE_SIZE;
    const page = found.slice(start, start + PAGE_SIZE);
    document.getElementById("shown").textContent = found.length
      ? (start + 1) + "–" + (start + page.length) + " of " + found.length + " problems"
      : "no problem";
    for (const place of document.querySelectorAll(".place")) place.textContent = state.page + " / " + pages;
    for (const button of document.querySelectorAll(".pager button")) {
      button.disabled = /first|back/.test(button.dataset.go) ? state.page === 1 : state.page === pages;
    }
    const cards = page.map(card);
    if (cards.length) cards[Math.max(0, cards.findIndex((c) => c.matches(".wanted")))].tabIndex = 0;
    else cards.push(element("p", "none", "Nothing matches. Clear the search or choose “all”."));
    list.replaceChildren(...cards);
  }

  function go(where) {
    const last = Math.max(1, Math.ceil(found.length / PAGE_SIZE));
    const target = { first: 1, back: state.page - 1, on: state.page + 1, last }[where];
    if (target < 1 || target > last || target === state.page) return;
    const hadFocus = list.contains(document.activeElement);
    state.page = target;
    state.item = "";
    toAddress();
    show();
    if (hadFocus) focusRow(list.firstElementChild);
    else document.getElementById("gallery").scrollIntoView();
  }

  const benchmarkOf = (row) => data.benchmarks[row.benchmark];
  const addressOf = (row) => benchmarkOf(row).name + "/" + row.id;
  const words = (name) => name.replaceAll("_", " ");

  function element(tag, className, ...children) {
    const made = document.createElement(tag);
    if (className) made.className = className;
    made.append(...children.filter((child) => child !== null));
    return made;
  }

  function card(row) {
    const made = element("article", "row" + (row.images.length ? "" : " plain"));
    made.tabIndex = -1;
    made.setAttribute("aria-label", "problem " + row.id + ", " + data.outcomes[row.outcome]);
    if (addressOf(row) === state.item) made.classList.add("wanted");
    if (row.images.length) made.append(element("div", "pictures", ...row.images.map((place) => picture(place, row))));
    const link = element("a", "", "link");
    link.href = "#" + new URLSearchParams({ item: addressOf(row) });
    link.setAttribute("aria-label", "link to problem " + row.id);
    const outcome = names.before || row.outcome !== "wrong" ? data.outcomes[row.outcome] : "wrong";
    const head = element("p", "row-head", element("span", "badge " + row.outcome, outcome),
      element("span", "", benchmarkOf(row).title), element("span", "", row.id), ...row.keys.map((key) => element("span", "", key)),
      row.hidden ? element("span", "", row.hidden + (row.hidden > 1 ? " images" : " image") + " not shown") : null, link);
    const gold = element("p", "gold", element("span", "when", "gold"), element("strong", "", row.gold), element("span", "quiet", row.kind));
    const main = element("div", "row-main", head, text("p", "problem", row.question));
    if (row.choices.length) {
      const choices = element("ol", "choices", ...row.choices.map((choice) => text("li", "", choice)));
      choices.type = "A";
      main.append(choices);
    }
    const sides = element("div", "sides");
    if (row.before) sides.append(side(names.before, row.before));
    sides.append(side(names.after, row.after));
    main.append(gold, sides);
    made.append(main);
    return made;
  }

  function text(tag, className, content) {
    const made = element(tag, className, content);
    made.dir = "auto";
    return made;
  }

  function picture(place, row) {
    const image = new Image();
    image.decoding = "async";
    image.alt = "image of problem " + row.id;
    image.src = data.pictures[place];
    return image;
  }

  // One model's completions: the first open, the others behind a summary and made when it is opened.
  function side(name, completions) {
    const made = element("div", "side");
    if (!completions.length) return made;
    made.append(answer(name, completions[0], completions));
    if (completions.length > 1) {
      const rest = element("details", "", element("summary", "", completions.length - 1 + " more"));
      rest.addEventListener("toggle", () => rest.append(...completions.slice(1).map((c) => answer(name, c, [c]))), { once: true });
      made.lastChild.append(rest);
    }
    return made;
  }

  function answer(name, c, all) {
    const right = all.filter((one) => one.official).length;
    const badge = element("span", "badge", (c.official ? "✓ " : "✕ ") + (words(c.verdict) || (c.official ? "right" : "wrong")));
    const head = element("p", "answer-head", element("span", "when", name),
      c.extracted === null ? null : element(c.official ? "strong" : "s", "", c.extracted), badge,
      c.official === c.correct ? null : element("span", "quiet", "official rule: " + (c.official ? "right" : "wrong")),
      c.judge ? element("span", "quiet", "judge: " + c.judge) : null,
      all.length > 1 ? element("span", "quiet", right + " of " + all.length + " right") : null,
      c.tokens === null ? null : element("span", "quiet", c.tokens + " tokens" + (c.cut ? ", cut by the budget" : "")));
    const body = text("pre", "", c.text);
    body.tabIndex = 0;
    body.setAttribute("aria-label", "completion of " + name);
    return element("div", "answer " + (c.official ? "is-right" : "is-wrong"), head, body);
  }

  function focusRow(row) {
    if (!row || !row.matches(".row")) return;
    for (const other of list.children) other.tabIndex = other === row ? 0 : -1;
    row.focus({ preventScroll: true });
    row.scrollIntoView({ block: "nearest" });
  }

  function change() {
    for (const field of fields) state[field] = form.elements[field].value;
    state.page = 1;
    state.item = "";
    fill();
    toAddress();
    show();
  }

  form.addEventListener("input", change);
  form.addEventListener("submit", (event) => event.preventDefault());
  for (const button of document.querySelectorAll(".pager button")) {
    button.addEventListener("click", () => go(button.dataset.go));
  }
  window.addEventListener("hashchange", fromAddress);
  document.addEventListener("keydown", function (event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target.closest("input, select, textarea, pre, summary")) return;
    const row = event.target.closest(".row");
    const step = { ArrowDown: "nextElementSibling", ArrowUp: "previousElementSibling" }[event.key];
    const page = { ArrowLeft: "back", ArrowRight: "on" }[event.key];
    if (event.key === "/") form.elements.q.focus();
    else if (page) go(page);
    else if (step && row && row[step]) focusRow(row[step]);
    else return;
    event.preventDefault();
  });
  fromAddress();
})();

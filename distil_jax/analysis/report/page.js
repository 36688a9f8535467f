"use strict";
(() => {
  const make = (tag, attributes, ...children) => {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes || {})) {
      if (name === "class") element.className = value;
      else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
      else if (value !== null && value !== false) element.setAttribute(name, value);
    }
    element.append(...children.filter((child) => child !== null));
    return element;
  };
  const digits = (x) => x === null || x === undefined ? "–"
    : x === 0 ? "0"
    : Math.abs(x) >= 1000 ? Math.round(x).toLocaleString("en")
    : String(Number(x.toPrecision(3)));

  // Charts: a line and the numbers under the pointer.
  const charts = new WeakMap();
  const chartOf = (area) => {
    if (!charts.has(area)) {
      const text = area.closest("figure").querySelector("script").textContent;
      charts.set(area, { points: JSON.parse(text), at: null });
    }
    return charts.get(area);
  };
  const nearest = (steps, step) => {
    let best = 0;
    for (let i = 1; i < steps.length; i++)
      if (Math.abs(steps[i] - step) < Math.abs(steps[best] - step)) best = i;
    return best;
  };
  const showPoint = (area, index) => {
    const chart = chartOf(area), points = chart.points;
    chart.at = index;
    const step = points.steps[index];
    const place = points.bars ? (index + 0.5) / points.steps.length
      : (step - points.first) / Math.max(points.last - points.first, 1);
    const cursor = area.querySelector(".cursor"), tip = area.querySelector(".tip");
    cursor.hidden = tip.hidden = false;
    cursor.style.left = `${100 * place}%`;
    const rows = points.series.map((line) => {
      let value;
      if (points.bars) value = line.values[index];
      else {
        const i = nearest(line.steps, step);
        const reach = Math.max(1, (points.last - points.first) / 40);
        value = Math.abs(line.steps[i] - step) <= reach ? line.values[i] : null;
      }
      return [line.label, value];
    }).filter(([, value]) => value !== null && !(points.bars && value === 0));
    tip.replaceChildren(
      make("p", {}, make("b", {}, `${points.bars ? "to step" : "step"} ${step.toLocaleString("en")}`)),
      ...rows.map(([label, value]) => make("p", {}, `${label} `,
        make("b", {}, points.percent ? `${(100 * value).toFixed(1)} %` : digits(value)))));
    const x = place * area.clientWidth, width = tip.offsetWidth;
    tip.style.left = `${Math.max(-40, Math.min(x + 12 + width > area.clientWidth
      ? x - width - 12 : x + 12, area.clientWidth - width))}px`;
    tip.style.top = "4px";
  };
  const hidePoint = (area) => {
    area.querySelector(".cursor").hidden = area.querySelector(".tip").hidden = true;
  };
  const pointAt = (event) => {
    const area = event.target.closest && event.target.closest(".area");
    if (!area) return;
    const box = area.getBoundingClientRect(), points = chartOf(area).points;
    const share = Math.min(1, Math.max(0, (event.clientX - box.left) / box.width));
    showPoint(area, points.bars
      ? Math.min(points.steps.length - 1, Math.floor(share * points.steps.length))
      : nearest(points.steps, points.first + share * (points.last - points.first)));
  };
  document.addEventListener("pointermove", pointAt);
  document.addEventListener("pointerdown", pointAt);
  document.addEventListener("pointerout", (event) => {
    const area = event.target.closest && event.target.closest(".area");
    if (area && !area.contains(event.relatedTarget)) hidePoint(area);
  });
  document.addEventListener("focusout", (event) => {
    if (event.target.matches && event.target.matches(".area")) hidePoint(event.target);
  });
  document.addEventListener("keydown", (event) => {
    const area = event.target.closest && event.target.closest(".area");
    const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!area || !move) return;
    const chart = chartOf(area), last = chart.points.steps.length - 1;
    const from = chart.at === null ? last + (move < 0 ? 1 : 0) : chart.at;
    showPoint(area, Math.min(last, Math.max(0, from + move)));
    event.preventDefault();
  });

  // Rollouts: a list, and one of them in full.
  const VIEWS = [
    ["cost", "cost", "nats: the student under its teacher"],
    ["future_cost", "future cost", "nats still to come after the token"],
    ["score_weight", "score weight", "weight on log π: orange lowers, blue raises the token"],
    ["log_prob", "student", "surprise of the student, nats"],
    ["teacher_log_prob", "teacher", "surprise of the teacher, nats"],
  ];
  const state = { status: "all", step: "all", run: "all", words: "", chosen: null, view: null };
  let rollouts = [];
  const idOf = (r) => `${r.run}/${r.kind}/${r.step}/${r.problem}/${r.number}`;
  const readRollouts = () => {
    const data = document.getElementById("data");
    rollouts = data ? JSON.parse(data.textContent) : [];
    const seen = {};
    for (const r of rollouts) {
      const key = `${r.run}/${r.kind}/${r.step}/${r.problem}`;
      seen[key] = (seen[key] || 0) + 1;
      r.number = seen[key];
    }
  };
  const question = (r) => r.messages.length ? r.messages[r.messages.length - 1].content : "";
  const matches = (r) => (state.status === "all" || r.status === state.status)
    && (state.step === "all" || `${r.kind}/${r.step}` === state.step)
    && (state.run === "all" || r.run === state.run)
    && (!state.words || `${question(r)}\n${r.completion}\n${r.feedback}`.toLowerCase()
      .includes(state.words.toLowerCase()));
  const count = (key) => {
    const found = new Map();
    for (const r of rollouts) found.set(key(r), (found.get(key(r)) || 0) + 1);
    return found;
  };
  const chosen = () => {
    const shown = rollouts.filter(matches);
    return shown.find((r) => idOf(r) === state.chosen) || shown[0] || null;
  };
  const select = (name, label, values) => make("select", { "aria-label": label,
    onchange: (event) => { state[name] = event.target.value; draw(); } },
    make("option", { value: "all" }, `all ${label}`),
    ...values.map(([value, text]) => make("option",
      { value, selected: state[name] === value ? "" : null }, text)));
  const drawFilters = () => {
    const statuses = count((r) => r.status);
    const names = ["all", ...[...statuses.keys()].sort((a, b) =>
      (a === "correct") - (b === "correct") || statuses.get(b) - statuses.get(a))];
    const steps = [...count((r) => `${r.kind}/${r.step}`).keys()].sort((a, b) =>
      Number(b.split("/")[1]) - Number(a.split("/")[1]));
    const runs = [...count((r) => r.run).keys()];
    return make("div", { class: "filters" },
      ...names.map((name) => make("button", { type: "button",
        "aria-pressed": String(state.status === name),
        onclick: () => { state.status = name; draw(); } },
        `${name} ${name === "all" ? rollouts.length : statuses.get(name)}`)),
      select("step", "steps", steps.map((key) => {
        const [kind, step] = key.split("/");
        return [key, kind === "training" ? `step ${step}` : `held-out, step ${step}`];
      })),
      runs.length > 1 ? select("run", "runs", runs.map((run) => [run, run])) : null,
      make("input", { type: "search", placeholder: "search", "aria-label": "search",
        value: state.words, oninput: (event) => {
          state.words = event.target.value; drawSplit();
        } }));
  };
  const move = (by) => {
    const shown = rollouts.filter(matches), at = shown.indexOf(chosen());
    const next = shown[Math.min(shown.length - 1, Math.max(0, at + by))];
    if (next) { state.chosen = idOf(next); drawSplit(); }
  };
  const pre = (text) => make("pre", { dir: "auto" }, text);
  const titled = (title, ...content) => [make("h4", {}, title), ...content];

  const heat = (name, value, top) => {
    if (value === null || value === undefined) return "";
    const amount = name.endsWith("log_prob") ? -value : value;
    const share = Math.min(1, Math.abs(amount) / top);
    const hue = amount < 0 ? "cold" : "heat";
    return `background: rgba(var(--${hue}), ${(0.72 * share).toFixed(3)})`;
  };
  // The strongest colour is for the 98th percentile, so that one odd token
  // does not make all others pale.
  const topOf = (values) => {
    const sizes = values.filter((x) => x !== null).map(Math.abs).sort((a, b) => a - b);
    return sizes.length ? Math.max(sizes[Math.floor(0.98 * (sizes.length - 1))], 1e-3) : 1;
  };
  const tokenTip = make("div", { class: "token", hidden: "" });
  const choiceRows = (choices, label) => choices && choices.length
    ? [make("tr", {}, make("td", { colspan: 2, class: "note" }, label)),
      ...choices.map(([text, prob]) => make("tr", {},
        make("td", {}, make("code", {}, JSON.stringify(text).slice(1, -1) || " ")),
        make("td", { class: "prob" },
          make("i", { style: `width:${100 * prob}%` }),
          make("span", {}, `${(100 * prob).toFixed(1)} %`))))]
    : [];
  const showToken = (element, tokens, i) => {
    const rows = VIEWS.filter(([name]) => tokens[name] && tokens[name][i] !== null
      && tokens[name][i] !== undefined).map(([name, label]) => {
      const value = tokens[name][i];
      const text = name.endsWith("log_prob")
        ? `${(100 * Math.exp(value)).toPrecision(3)} %` : digits(value);
      return make("tr", {}, make("td", {}, label), make("td", {}, make("b", {}, text)));
    });
    const isTold = rows.length > 0;
    tokenTip.replaceChildren(make("table", {},
      make("tr", {}, make("td", {}, `token ${i + 1}`),
        make("td", {}, make("code", {}, JSON.stringify(tokens.text[i]).slice(1, -1)))),
      ...(isTold ? rows : [make("tr", {}, make("td", { colspan: 2 }, "not the student's own, or not judged"))]),
      ...choiceRows(tokens.teacher_choices && tokens.teacher_choices[i], "the teacher would write"),
      ...choiceRows(tokens.choices && tokens.choices[i], "the student would write")));
    tokenTip.hidden = false;
    const box = element.getBoundingClientRect(), tip = tokenTip.getBoundingClientRect();
    tokenTip.style.left = `${Math.max(6, Math.min(box.left, innerWidth - tip.width - 6))}px`;
    tokenTip.style.top = `${box.bottom + 8 + tip.height > innerHeight && box.top > tip.height + 8
      ? box.top - tip.height - 8 : box.bottom + 8}px`;
  };
  const heatMap = (r) => {
    const tokens = r.tokens;
    const views = VIEWS.filter(([name]) => tokens[name] && tokens[name].some((x) => x !== null));
    if (!views.length) return [pre(r.completion)];
    const [name, , note] = views.find(([key]) => key === state.view) || views[0];
    const top = topOf(tokens[name]);
    const stream = make("div", { class: "stream", dir: "auto" },
      ...tokens.text.map((text, i) => make("span", {
        "data-i": i, style: heat(name, tokens[name][i], top),
        class: tokens[name][i] === null || tokens[name][i] === undefined ? "mute" : "" }, text)));
    const over = (event) => {
      const i = event.target.dataset && event.target.dataset.i;
      if (i === undefined) tokenTip.hidden = true;
      else showToken(event.target, tokens, Number(i));
    };
    stream.addEventListener("pointerover", over);
    stream.addEventListener("pointerdown", over);
    stream.addEventListener("pointerleave", () => { tokenTip.hidden = true; });
    const isSigned = tokens[name].some((x) => x < 0) && !name.endsWith("log_prob");
    const ramp = isSigned
      ? "linear-gradient(90deg, rgba(var(--cold), .72), rgba(var(--cold), 0) 50%, rgba(var(--heat), 0) 50%, rgba(var(--heat), .72))"
      : "linear-gradient(90deg, rgba(var(--heat), 0), rgba(var(--heat), .72))";
    return [
      make("div", { class: "views" },
        ...views.map(([key, label]) => make("button", { type: "button",
          "aria-pressed": String(key === name),
          onclick: () => { state.view = key; drawSplit(); } }, label)),
        make("span", { class: "scale", title: note }, isSigned ? `−${digits(top)}` : "0",
          make("i", { style: `background:${ramp}` }), digits(top))),
      stream,
      make("p", { class: "note" }, note)];
  };
  const drawDetail = (r) => make("article", { class: "detail", "aria-live": "polite" },
    make("div", { class: "head" },
      make("span", { class: `chip s-${r.status}` }, r.status),
      make("span", {}, `reward ${digits(r.reward)}`),
      make("span", {}, `problem ${r.problem}${r.source ? ` of ${r.source}` : ""}`),
      make("span", {}, r.kind === "training" ? `step ${r.step}` : `held-out, step ${r.step}`),
      make("span", {}, `${r.num_tokens} tokens, ${r.stop_reason === "length" ? "cut off" : `ended by ${r.stop_reason.replace("_", " ")}`}`),
      new Set(rollouts.map((x) => x.run)).size > 1 ? make("span", {}, r.run) : null,
      make("button", { type: "button", class: "turn", "aria-label": "previous rollout", onclick: () => move(-1) }, "‹"),
      make("button", { type: "button", class: "turn", "aria-label": "next rollout", onclick: () => move(1) }, "›")),
    ...r.messages.flatMap((m) => titled(m.role === "user" ? "Problem" : m.role, pre(m.content))),
    ...(r.earlier || []).flatMap((m, i) => titled(`Turn ${Math.floor(i / 2) + 1}: ${m.role}`, pre(m.content))),
    ...titled("Completion", ...(r.tokens ? heatMap(r) : [pre(r.completion)])),
    ...titled("Feedback", r.feedback
      ? make("div", { class: `verdict s-${r.status}` }, make("pre", { dir: "auto" }, make("span", {}, r.feedback)))
      : make("p", { class: "empty" }, "none")),
    ...(r.answer ? titled("Answer", pre(r.answer)) : []),
    ...(r.kind !== "training" ? [] : titled("Teacher's prompt", r.teacher_prompt === undefined
      ? make("p", { class: "empty" }, "none: this sample has no teacher signal")
      : pre(r.teacher_prompt))));
  const drawSplit = () => {
    tokenTip.hidden = true;
    const shown = rollouts.filter(matches), current = chosen();
    const old = document.querySelector("#browser .split");
    const scroll = old ? old.querySelector(".list").scrollTop : 0;
    const list = make("ul", { class: "list", "aria-label": "rollouts" },
      ...shown.map((r) => make("li", {}, make("button", { type: "button",
        "aria-current": String(r === current),
        onclick: () => { state.chosen = idOf(r); drawSplit(); } },
        make("span", { class: "top" },
          make("b", { class: `s-${r.status}` }, r.status),
          make("span", {}, `${r.kind === "training" ? "" : "held-out "}step ${r.step} · ${digits(r.reward)}`)),
        make("span", { class: "line1", dir: "auto" }, question(r).slice(0, 120) || "(empty)")))));
    const split = make("div", { class: "split" }, list,
      current ? drawDetail(current) : make("p", { class: "detail empty" }, "no rollout matches"));
    if (old) old.replaceWith(split);
    else document.getElementById("browser").append(split);
    list.scrollTop = scroll;
  };
  const draw = () => {
    const browser = document.getElementById("browser");
    if (!browser) return;
    browser.replaceChildren(drawFilters());
    drawSplit();
  };
  document.body.append(tokenTip);
  addEventListener("scroll", () => { tokenTip.hidden = true; }, { passive: true });
  readRollouts();
  draw();

  // A page that is served asks for a newer one, and keeps what is open.
  if (!document.documentElement.hasAttribute("data-live")) return;
  const badge = document.getElementById("live");
  let version = document.documentElement.dataset.live;
  const refresh = async () => {
    try {
      const answer = await fetch(location.pathname,
        { headers: { "If-None-Match": version }, cache: "no-store" });
      badge.className = answer.ok || answer.status === 304 ? "" : "lost";
      badge.textContent = badge.className ? "cannot be read" : "live";
      if (answer.status !== 200) return;
      version = answer.headers.get("ETag");
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      const open = [...document.querySelectorAll("details[open]")].map((x) => x.id);
      const focus = document.activeElement && document.activeElement.type === "search";
      for (const tag of ["header h1", "header .facts", "nav", "main"]) {
        const old = document.querySelector(tag), now = page.querySelector(tag);
        if (old && now) old.replaceWith(document.adoptNode(now));
      }
      for (const id of open) {
        const found = id && document.getElementById(id);
        if (found) found.open = true;
      }
      readRollouts();
      draw();
      if (focus) {
        const input = document.querySelector("#browser input");
        input.focus();
        input.setSelectionRange(input.value.length, input.value.length);
      }
    } catch {
      badge.className = "lost";
      badge.textContent = "not served any more";
    }
  };
  setInterval(refresh, 4000);
})();

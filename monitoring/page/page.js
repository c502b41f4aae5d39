// Draws the page from snapshots that arrive as server-sent events. Text only ever enters as text nodes.
"use strict";
(() => {
  const byId = id => document.getElementById(id);
  const whole = n => n === null || n === undefined ? "–" : Math.round(n).toLocaleString("en");
  const fixed = (n, digits = 1) => n === null || n === undefined ? "–" : n.toFixed(digits).replace("-", "−");
  const signed = n => n === null || n === undefined ? "–" : (n > 0 ? "+" : "") + fixed(n);
  const STAGES = ["decode", "validate", "fetch", "image", "encode", "adapt", "search"];
  let shown = null;

  function make(tag, attributes = {}, ...children) {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    node.append(...children.filter(child => child !== null));
    return node;
  }
  const put = (id, text) => { if (byId(id).textContent !== text) byId(id).textContent = text; };

  function headline(h, queries) {
    const verdicts = { helps: "adaptation helps", harms: "adaptation harms", neutral: "no clear difference", waiting: "waiting for labels" };
    byId("gain").dataset.verdict = h.verdict ?? "waiting";
    put("verdict", verdicts[h.verdict] ?? verdicts.waiting);
    byId("verdict").title = "What the labels prove, with one error budget over the whole stream: looking often does not change it";
    put("gain-value", signed(h.gain));
    const known = h.low !== null && h.low !== undefined;
    byId("ruler").classList.toggle("drawn", known);
    if (known) {
      const reach = Math.max(5, 1.25 * Math.max(Math.abs(h.low), Math.abs(h.high)));
      const place = v => 50 + 50 * v / reach;
      byId("ruler-band").style.left = `${place(h.low)}%`;
      byId("ruler-band").style.width = `${place(h.high) - place(h.low)}%`;
      byId("ruler-dot").style.left = `${place(h.gain)}%`;
      byId("ruler-zero").style.left = "50%";
      const text = `95 % interval ${signed(h.low)} to ${signed(h.high)}`;
      byId("ruler").setAttribute("aria-label", text);
      put("gain-interval", `${text}, from labels worth ${whole(h.n_eff)}; the newest weigh most`);
      put("gain-anytime", `All ${whole(h.block_labels)} labels of block ${h.block + 1}: ${signed(h.anytime_low)} to ${signed(h.anytime_high)}, valid at every look${h.steady ? "" : "; the difference has moved meanwhile"}`);
    }
    put("labels", whole(h.arrived ?? 0));
    const also = ["expired", "ignored"].filter(kind => h[kind]).map(kind => ` · ${whole(h[kind])} ${kind}`).join("");
    put("labels-fine", h.requested ? `of ${whole(h.requested)} asked for · ${whole(h.pending)} pending${also}` : "");
    document.title = known ? `${signed(h.gain)} points · ${byId("title").textContent}` : byId("title").textContent;
  }

  function expected(e) {
    const known = e?.frozen !== null && e?.frozen !== undefined;
    put("expected", known ? `Expected, without labels, of pictures: frozen ${fixed(e.frozen)}, adapted ${fixed(e.adapted)} mAP` : "");
  }

  function phases(rows) {
    byId("phases-box").hidden = !rows.length;
    const reach = Math.max(5, ...rows.flatMap(r => [Math.abs(r.low ?? 0), Math.abs(r.high ?? 0)])) * 1.05;
    const place = v => 50 + 50 * v / reach;
    byId("phases").tBodies[0].replaceChildren(...rows.map(r => {
      const way = r.low > 0 ? "up" : r.high !== null && r.high < 0 ? "down" : "";
      const whisker = make("div", { class: `whisker ${way}`, role: "img", "aria-label": r.low === null ? "no interval yet" : `${signed(r.low)} to ${signed(r.high)}`, title: r.low === null ? "" : `${signed(r.low)} to ${signed(r.high)}` });
      const zero = make("i"); zero.style.left = "50%"; whisker.append(zero);
      if (r.low !== null) {
        const band = make("b"), dot = make("u");
        band.style.left = `${place(r.low)}%`; band.style.width = `${Math.max(.5, place(r.high) - place(r.low))}%`; dot.style.left = `${place(r.diff)}%`;
        whisker.append(band, dot);
      }
      const cell = text => make("td", { class: "num" }, text);
      return make("tr", {}, make("th", { scope: "row" }, r.text), cell(whole(r.n)), cell(fixed(r.frozen)), cell(fixed(r.adapted)), cell(fixed(r.served)),
        make("td", { class: `num delta ${way}` }, signed(r.diff)), make("td", {}, whisker));
    }));
  }

  function answerRow(name, title, items, labelled) {
    const rank = items.findIndex(item => item.right) + 1;
    const note = !labelled ? "" : rank ? `right at ${rank}` : "not in the first five";
    const list = make("ol", { class: "row", "aria-label": title }, ...items.map(item => {
      const box = make("li", { class: "item" + (item.right ? " right" : "") + (item.picture ? "" : " words"), title: item.title });
      if (item.picture) box.append(make("img", { src: item.picture, alt: item.title + (item.right ? ", right" : ""), loading: "lazy", decoding: "async" }));
      else box.append(item.title);
      return box;
    }));
    return make("div", {}, make("div", { class: `row-head ${name}` }, make("b", {}, title), make("span", { class: rank ? "found" : "" }, note)), list);
  }

  function card(query) {
    const asked = make("div", { class: "asked" });
    if (query.picture) asked.append(make("img", { src: query.picture, alt: "query picture", decoding: "async" }));
    else asked.append(make("blockquote", {}, query.text ? `“${query.text}”` : "a feature vector"));
    const state = query.labelled ? "label known" : query.asked ? "label asked for" : "not sampled";
    asked.append(make("small", { title: query.at }, `query ${query.at.split("/").slice(-2).join("/")}`, make("br"), state));
    const rows = make("div", { class: "answers" }, answerRow("frozen", "Frozen twin", query.answers.frozen, query.labelled), answerRow("served", "Served", query.answers.served, query.labelled));
    const node = make("article", { class: "card query" }, asked, rows);
    node.dataset.key = JSON.stringify(query);
    return node;
  }

  // Cards that did not change keep their nodes, so that pictures do not flicker.
  function latest(queries) {
    if (!queries.length) return;
    const old = new Map([...byId("latest").children].map(node => [node.dataset.key, node]));
    byId("latest").replaceChildren(...queries.map(query => old.get(JSON.stringify(query)) ?? card(query)));
  }

  function lanes(rows) {
    if (!rows.length) return;
    byId("lanes").tBodies[0].replaceChildren(...rows.map(r => {
      const cell = text => make("td", { class: "num" }, text);
      return make("tr", {}, make("th", { scope: "row" }, r.lane), cell(whole(r.queries)), cell(whole(r.updates)), cell(whole(r.refused)), cell(whole(r.resets)),
        cell(fixed(r.source_distance, 3)), cell(r.flip_share === null ? "–" : `${fixed(100 * r.flip_share)} %`), make("td", {}, r.reason || "–"),
        make("td", {}, make("code", { title: r.state_hash }, r.state_hash.slice(0, 12) || "–")));
    }));
  }

  function deadLetters(part, queries) {
    const total = Object.values(part.stages).reduce((a, b) => a + b, 0);
    put("letters", whole(total));
    put("letters-fine", total ? `${fixed(100 * total / Math.max(1, total + queries), 2)} % of all records` : "every record was answered");
    byId("stages").replaceChildren(...STAGES.map(stage => make("li", part.stages[stage] ? { class: "some" } : {}, stage, make("b", {}, whole(part.stages[stage] ?? 0)))));
    byId("letters-latest").replaceChildren(...part.latest.slice(0, 4).map(l => make("li", {}, make("code", {}, l.at), make("span", {}, `${l.stage}: ${l.reason}`))));
  }

  function orders(commands) {
    byId("orders-box").hidden = !commands.length;
    byId("orders").replaceChildren(...[...commands].reverse().slice(0, 12).map(c => make("li", {},
      make("code", {}, `${c.lane || "no lane"} · batch ${whole(c.batch)}`),
      make("span", {}, `${[c.action, c.what].filter(Boolean).join(" ")} by ${c.author}: ${c.result}${c.reason ? `, ${c.reason}` : ""}`))));
  }

  function driftLanes(lanesSeen) {
    const select = byId("drift-lane"), names = [...new Set(lanesSeen)].sort();
    byId("drift-pick").hidden = names.length < 2;
    const have = [...select.options].map(option => option.value).filter(Boolean);
    if (have.join("|") !== names.join("|")) {
      const chosen = select.value;
      select.replaceChildren(make("option", { value: "" }, "all"), ...names.map(name => make("option", { value: name }, name)));
      select.value = names.includes(chosen) ? chosen : "";
    }
    return select.value;
  }

  function draw(s) {
    shown = s;
    put("title", s.title);
    if (s.subtitle) put("subtitle", s.subtitle);
    put("attribution", s.attribution);
    headline(s.headline, s.queries);
    expected(s.expected);
    put("queries", whole(s.queries));
    put("queries-fine", [
      s.repeated ? `${whole(s.repeated)} answered again after a restart` : s.lanes.length ? `in ${s.lanes.length} lane${s.lanes.length > 1 ? "s" : ""}` : "",
      s.abstained ? `${whole(s.abstained)} abstained` : "",
    ].filter(Boolean).join(", "));
    const total = s.latency.total;
    put("latency-total", total.p50 === null ? "–" : `${whole(total.p50)} ms`);
    put("latency-fine", total.p95 === null ? "" : `95th percentile ${whole(total.p95)} ms · ${whole(s.latency.batches)} batches`);
    phases(s.phases);
    latest(s.latest);
    lanes(s.lanes);
    orders(s.commands);
    deadLetters(s.dead_letters, s.queries);
    const lane = driftLanes(s.drift.lane);
    if (window.Plotly) { Charts.quality(s.quality, s.phases, s.commands); Charts.drift(s.drift, s.phases, lane, s.commands); Charts.latency(s.latency); }
    document.documentElement.dataset.drawn = String(s.version);
  }

  function status(state, text) { byId("status").dataset.state = state; byId("status").lastElementChild.textContent = text; }

  const redraw = () => { if (shown) draw(shown); };
  byId("drift-lane").addEventListener("change", redraw);
  byId("theme").addEventListener("click", () => {
    const root = document.documentElement;
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
    try { localStorage.setItem("qshift-theme", root.dataset.theme); } catch { /* storage is off: until the next load */ }
    redraw();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);

  if (new URLSearchParams(location.search).has("still")) {
    // One snapshot and no stream: for pictures and for people who want the page to hold still.
    fetch("/snapshot").then(reply => reply.json()).then(s => { draw(s); status("live", "still picture"); });
    return;
  }
  const events = new EventSource("/events");
  events.addEventListener("open", () => status("live", "live"));
  events.addEventListener("error", () => status("lost", "reconnecting"));
  events.addEventListener("snapshot", event => draw(JSON.parse(event.data)));
})();

"use strict";
(() => {
  // ---- what the page holds ------------------------------------------------------------------------------------------
  const data = JSON.parse(document.getElementById("data").textContent);
  const kinds = { u8: Uint8Array, u16: Uint16Array, i32: Int32Array, f32: Float32Array };
  const array = ({ type, base64 }) => {
    const text = atob(base64), bytes = new Uint8Array(text.length);
    for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
    return new kinds[type](bytes.buffer);
  };
  const codes = {}, values = {};
  for (const [name, one] of Object.entries(data.choices)) codes[name] = array(one);
  for (const [name, one] of Object.entries(data.values)) values[name] = array(one);
  const count = data.plans, front = data.front;
  const levels = (name) => data.choices[name].levels;
  const $ = (id) => document.getElementById(id);
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const make = (tag, text, attributes = {}) => {
    const element = document.createElement(tag);
    if (text !== undefined) element.textContent = text;
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    return element;
  };

  // ---- figures ------------------------------------------------------------------------------------------------------
  const prefixes = [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"], [1, ""], [1e-3, "m"], [1e-6, "µ"]];
  const digits = (x) => (x === 0 ? "0" : Math.abs(x) >= 1000 ? Math.round(x).toLocaleString("en") : Number(x.toPrecision(4)).toString());
  const scaled = new Set(["s", "J", "B", "W", "Hz"]);
  const shown = (x, unit) => {
    if (!Number.isFinite(x)) return "unknown";
    if (!scaled.has(unit)) return `${digits(x)} ${unit}`.trim();
    const [size, prefix] = prefixes.find(([size]) => Math.abs(x) >= size) || [1, ""];
    return `${digits(x / size)} ${prefix}${unit}`;
  };
  const figure = (name, x) => shown(x, data.units[name] || "");
  const percent = (x) => `${x >= 0 ? "+" : ""}${(100 * x).toFixed(1)} %`;

  // Point i is plan i of the survey, or, from `count` on, plan i - count of the front.
  const valueOf = (i, name) => (i < count ? values[name][i] : (front[i - count].values[name] ?? NaN));
  const choiceOf = (i, name) => (i < count ? levels(name)[codes[name][i]] : front[i - count].choices[name]);
  const quiet = { dp: "1", tp: "1", pp: "1", ep: "1", cp: "1", virtual_stages: "1", sequence_parallel: "off", recompute: "none", etp: "unset", dispatch: "alltoall", node_limit: "unset", dispatch_overlap: "unset" };
  const summary = (i) => Object.keys(data.choices)
    .filter((name) => choiceOf(i, name) !== quiet[name] && !(name === "schedule" && choiceOf(i, "pp") === "1"))
    .map((name) => `${data.names[name] || name} ${choiceOf(i, name)}`).join(" · ");

  // ---- state --------------------------------------------------------------------------------------------------------
  const state = { x: data.axes[0], y: data.axes[1], visible: new Uint8Array(count + front.length).fill(1), hover: -1, picked: -1, off: {} };
  const page = { state, data, drawn_ms: 0, pixel: null };
  window.searchPage = page;

  // ---- drawing ------------------------------------------------------------------------------------------------------
  const canvasOf = (id) => {
    const canvas = $(id), ratio = window.devicePixelRatio || 1, box = canvas.getBoundingClientRect();
    canvas.width = Math.max(1, Math.round(box.width * ratio));
    canvas.height = Math.max(1, Math.round(box.height * ratio));
    const context = canvas.getContext("2d");
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.font = "12px system-ui, sans-serif";
    return { context, width: box.width, height: box.height };
  };
  const ticksOf = (low, high, most) => {
    const rough = (high - low) / most || 1, power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((n) => n * power).find((n) => n >= rough) || rough;
    const ticks = [];
    for (let at = Math.ceil(low / step) * step; at <= high + step * 1e-9; at += step) ticks.push(at);
    return ticks;
  };
  const frameOf = (id, xs, ys, xName, yName) => {
    const { context, width, height } = canvasOf(id);
    const pad = { left: 74, right: 30, top: 14, bottom: 40 };
    const spread = ([low, high]) => (high > low ? [low - 0.03 * (high - low), high + 0.03 * (high - low)] : [low * 0.95, high * 1.05 || 1]);
    const [x0, x1] = spread(xs), [y0, y1] = spread(ys);
    const px = (x) => pad.left + ((x - x0) / (x1 - x0)) * (width - pad.left - pad.right);
    const py = (y) => height - pad.bottom - ((y - y0) / (y1 - y0)) * (height - pad.top - pad.bottom);
    context.strokeStyle = css("--rule"); context.fillStyle = css("--soft"); context.lineWidth = 1;
    context.textAlign = "center"; context.textBaseline = "top";
    for (const at of ticksOf(x0, x1, width / 110)) {
      context.beginPath(); context.moveTo(px(at), pad.top); context.lineTo(px(at), height - pad.bottom); context.stroke();
      context.fillText(figure(xName, at), px(at), height - pad.bottom + 4);
    }
    context.textAlign = "right"; context.textBaseline = "middle";
    for (const at of ticksOf(y0, y1, height / 60)) {
      context.beginPath(); context.moveTo(pad.left, py(at)); context.lineTo(width - pad.right, py(at)); context.stroke();
      context.fillText(figure(yName, at), pad.left - 6, py(at));
    }
    context.textAlign = "center"; context.textBaseline = "bottom";
    context.fillText(data.labels[xName] || xName, (pad.left + width - pad.right) / 2, height - 2);
    context.save(); context.translate(11, (pad.top + height - pad.bottom) / 2); context.rotate(-Math.PI / 2);
    context.textBaseline = "middle"; context.fillText(data.labels[yName] || yName, 0, 0); context.restore();
    return { context, px, py, width, height, pad };
  };
  const rangeOf = (name, extra = []) => {
    let low = Infinity, high = -Infinity;
    const take = (x) => { if (Number.isFinite(x)) { if (x < low) low = x; if (x > high) high = x; } };
    const column = values[name];
    for (let i = 0; i < count; i++) if (state.visible[i]) take(column[i]);
    front.forEach((_, k) => { if (state.visible[count + k]) take(valueOf(count + k, name)); });
    extra.forEach(take);
    return low <= high ? [low, high] : [0, 1];
  };

  const cell = 12; // pixels of a bucket, in which the nearest point is looked for
  let beneath, buckets = new Map(), points = { x: new Float32Array(0), y: new Float32Array(0) };
  const drawFront = () => {
    const began = performance.now();
    const { context, px, py } = frameOf("front", rangeOf(state.x), rangeOf(state.y), state.x, state.y);
    const total = count + front.length;
    points = { x: new Float32Array(total), y: new Float32Array(total) };
    buckets = new Map();
    const put = (i, x, y) => {
      points.x[i] = x; points.y[i] = y;
      const key = Math.floor(x / cell) * 4096 + Math.floor(y / cell), list = buckets.get(key);
      if (list) list.push(i); else buckets.set(key, [i]);
    };
    const xs = values[state.x], ys = values[state.y];
    context.fillStyle = css("--dot"); context.globalAlpha = count > 20000 ? 0.45 : 0.7;
    for (let i = 0; i < count; i++) {
      if (!state.visible[i]) continue;
      const x = px(xs[i]), y = py(ys[i]);
      put(i, x, y); context.fillRect(x - 1.2, y - 1.2, 2.4, 2.4);
    }
    context.globalAlpha = 1; context.strokeStyle = css("--front"); context.fillStyle = css("--front"); context.lineWidth = 1.5;
    const isFront = state.x === data.axes[0] && state.y === data.axes[1];
    const kept = front.map((_, k) => count + k).filter((i) => state.visible[i]);
    if (isFront) {
      context.beginPath();
      kept.forEach((i, n) => { const x = px(valueOf(i, state.x)), y = py(valueOf(i, state.y)); if (n) { context.lineTo(x, y); } else { context.moveTo(x, y); } });
      context.stroke();
    }
    for (const i of kept) {
      const x = px(valueOf(i, state.x)), y = py(valueOf(i, state.y));
      put(i, x, y); context.beginPath(); context.arc(x, y, front[i - count].picks.length ? 5.5 : 3.5, 0, 7); context.fill();
    }
    page.pixel = (i) => [points.x[i], points.y[i]];
    beneath = document.createElement("canvas");
    beneath.width = $("front").width; beneath.height = $("front").height;
    beneath.getContext("2d").drawImage($("front"), 0, 0);
    drawRings();
    page.drawn_ms = performance.now() - began;
  };
  // Plans are drawn once, and copied below the rings that follow the mouse.
  const drawRings = () => {
    const began = performance.now(), context = $("front").getContext("2d");
    context.save(); context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, beneath.width, beneath.height); context.drawImage(beneath, 0, 0); context.restore();
    for (const [i, colour, size] of [[state.hover, "--ink", 7], [state.picked, "--picked", 8]]) {
      if (i < 0 || !state.visible[i]) continue;
      context.strokeStyle = css(colour); context.lineWidth = 2.5; context.beginPath();
      context.arc(points.x[i], points.y[i], size, 0, 7); context.stroke();
    }
    page.ringed_ms = performance.now() - began;
  };
  const nearest = (x, y) => {
    const bx = Math.floor(x / cell), by = Math.floor(y / cell);
    let best = -1, least = (2 * cell) ** 2;
    for (let dx = -2; dx <= 2; dx++) for (let dy = -2; dy <= 2; dy++) {
      for (const i of buckets.get((bx + dx) * 4096 + by + dy) || []) {
        // a point of the front wins over one below it
        const distance = (points.x[i] - x) ** 2 + (points.y[i] - y) ** 2 - (i >= count ? 9 : 0);
        if (distance < least) { least = distance; best = i; }
      }
    }
    return best;
  };

  const sameButClock = (i) => {
    const names = Object.keys(data.choices).filter((name) => name !== "clock"), found = [];
    const wanted = names.map((name) => choiceOf(i, name));
    const number = names.map((name, n) => levels(name).indexOf(wanted[n]));
    for (let k = 0; k < count; k++) {
      let same = true;
      for (let n = 0; n < names.length && same; n++) same = codes[names[n]][k] === number[n];
      if (same) found.push(k);
    }
    front.forEach((_, k) => { if (names.every((name, n) => choiceOf(count + k, name) === wanted[n])) found.push(count + k); });
    return found.sort((a, b) => valueOf(a, "clock_Hz") - valueOf(b, "clock_Hz"));
  };
  const drawClock = () => {
    if (!values.it_energy_J || !values.clock_Hz) return;
    const { context, px, py } = frameOf("clock", rangeOf("clock_Hz"), rangeOf("it_energy_J"), "clock_Hz", "it_energy_J");
    context.fillStyle = css("--dot"); context.globalAlpha = 0.45;
    for (let i = 0; i < count; i++) if (state.visible[i]) context.fillRect(px(values.clock_Hz[i]) - 1, py(values.it_energy_J[i]) - 1, 2, 2);
    context.globalAlpha = 1;
    const shownPlan = state.picked >= 0 ? state.picked : count;
    const curve = sameButClock(shownPlan);
    page.curve = curve;
    context.strokeStyle = context.fillStyle = css("--picked"); context.lineWidth = 2; context.beginPath();
    curve.forEach((i, n) => { const at = [px(valueOf(i, "clock_Hz")), py(valueOf(i, "it_energy_J"))]; if (n) context.lineTo(...at); else context.moveTo(...at); });
    context.stroke();
    for (const i of curve) { context.beginPath(); context.arc(px(valueOf(i, "clock_Hz")), py(valueOf(i, "it_energy_J")), 3.5, 0, 7); context.fill(); }
  };

  // ---- the timeline, and memory below it ------------------------------------------------------------------------------
  const view = { plan: 0, from: 0, to: 1 };
  page.view = view;
  const lanes = data.timelines.map((one) => one.stages.map((stage) => ({
    kind: array(stage.kind), start: array(stage.start_s), end: array(stage.end_s), power: array(stage.power_W), micro: array(stage.micro_batch),
    memoryAt: array(stage.memory_s), memory: array(stage.memory_B) })));
  const drawTimeline = () => {
    const one = data.timelines[view.plan];
    if (!one) return;
    const { context, width, height } = canvasOf("timeline"), left = 74, right = 14, bottom = 24;
    const low = view.from * one.step_s, high = view.to * one.step_s;
    const px = (t) => left + ((t - low) / (high - low)) * (width - left - right);
    const lane = (height - bottom) / one.stages.length;
    const colours = data.kinds.map((kind) => css(`--${kind}`));
    context.textBaseline = "middle";
    one.stages.forEach((stage, s) => {
      const { kind, start, end, micro } = lanes[view.plan][s], top = s * lane + 1;
      context.fillStyle = css("--soft"); context.textAlign = "right";
      if (lane >= 11 || s % Math.ceil(11 / lane) === 0) context.fillText(`stage ${stage.stage}`, left - 6, top + lane / 2);
      context.textAlign = "center";
      for (let i = 0; i < kind.length; i++) {
        if (end[i] < low || start[i] > high) continue;
        const a = Math.max(px(start[i]), left), b = Math.min(px(end[i]), width - right);
        context.fillStyle = colours[kind[i]];
        context.fillRect(a, top, Math.max(b - a - (b - a > 3 ? 0.6 : 0), 0.4), Math.max(lane - 2, 1));
        if (b - a > 22 && lane > 14 && micro[i] >= 0) { context.fillStyle = css("--paper"); context.fillText(String(micro[i]), (a + b) / 2, top + lane / 2); }
      }
    });
    context.fillStyle = css("--soft"); context.textBaseline = "bottom"; context.textAlign = "center";
    for (const at of ticksOf(low, high, width / 110)) context.fillText(shown(at, "s"), px(at), height - 4);
    drawMemory(one, px, low, high, left, right);
  };
  const drawMemory = (one, px, low, high, left, right) => {
    const { context, width, height } = canvasOf("memory"), bottom = 8, top = 12;
    const most = Math.max(one.memory_available_B || 0, ...lanes[view.plan].map((lane) => lane.memory.reduce((a, b) => Math.max(a, b), 0)));
    const py = (b) => height - bottom - (b / most) * (height - bottom - top);
    context.fillStyle = css("--soft"); context.strokeStyle = css("--rule"); context.textAlign = "right"; context.textBaseline = "middle";
    for (const at of ticksOf(0, most, 4)) {
      context.fillText(shown(at, "B"), left - 6, py(at));
      context.beginPath(); context.moveTo(left, py(at)); context.lineTo(width - right, py(at)); context.stroke();
    }
    if (one.memory_available_B) {
      context.strokeStyle = css("--bad"); context.setLineDash([6, 4]); context.beginPath();
      context.moveTo(left, py(one.memory_available_B)); context.lineTo(width - right, py(one.memory_available_B)); context.stroke(); context.setLineDash([]);
    }
    context.save(); context.beginPath(); context.rect(left, 0, width - left - right, height); context.clip();
    lanes[view.plan].forEach(({ memoryAt, memory }, s) => {
      context.strokeStyle = `hsl(${(s * 360) / lanes[view.plan].length + 210} 60% ${document.documentElement.dataset.dark === "1" ? 65 : 42}%)`;
      context.lineWidth = 1.4; context.beginPath();
      for (let i = 0; i < memoryAt.length; i++) {
        const until = i + 1 < memoryAt.length ? memoryAt[i + 1] : one.step_s;
        if (until < low || memoryAt[i] > high) continue;
        context.lineTo(px(memoryAt[i]), py(memory[i])); context.lineTo(px(until), py(memory[i]));
      }
      context.stroke();
    });
    context.restore();
  };
  const sliceAt = (x, y) => {
    const one = data.timelines[view.plan], box = $("timeline").getBoundingClientRect();
    if (!one) return "";
    const lane = (box.height - 24) / one.stages.length, s = Math.floor(y / lane);
    const t = (view.from + ((x - 74) / (box.width - 88)) * (view.to - view.from)) * one.step_s;
    if (s < 0 || s >= one.stages.length || t < 0 || t > one.step_s) return "";
    const { kind, start, end, power, micro } = lanes[view.plan][s];
    for (let i = 0; i < kind.length; i++) if (start[i] <= t && t < end[i]) {
      const name = micro[i] >= 0 ? `${data.kinds[kind[i]]}, micro-batch ${micro[i]}` : data.kinds[kind[i]];
      const clock = kind[i] < 2 || data.kinds[kind[i]] === "optimizer" ? one.stages[s].clock_MHz[data.kinds[kind[i]]] : null;
      return `stage ${one.stages[s].stage}: ${name}\n${shown(end[i] - start[i], "s")}${Number.isFinite(power[i]) && power[i] > 0 ? `, ${shown(power[i], "W")} a GPU` : ""}${clock ? `, ${Math.round(clock)} MHz` : ""}`;
    }
    return "";
  };
  const zoom = (factor, centre) => {
    const span = Math.min(1, Math.max(1e-4, (view.to - view.from) * factor));
    const from = Math.min(1 - span, Math.max(0, centre - ((centre - view.from) / (view.to - view.from)) * span));
    view.from = from; view.to = from + span; drawTimeline();
  };
  const pan = (share) => {
    const span = view.to - view.from, from = Math.min(1 - span, Math.max(0, view.from + share * span));
    view.from = from; view.to = from + span; drawTimeline();
  };
  const showTimeline = (k) => {
    view.plan = k; view.from = 0; view.to = 1; $("which").value = String(k);
    const one = data.timelines[k];
    $("clocks").textContent = `${one.clocks} ${one.note}`;
    drawTimeline();
  };

  // ---- a plan, told ---------------------------------------------------------------------------------------------------
  const beatenBy = (i) => {
    const costs = (k) => data.objectives.map((name) => (data.higher.includes(name) ? -1 : 1) * valueOf(k, name));
    const mine = costs(i); let best = -1, most = 0;
    front.forEach((_, k) => {
      const its = costs(count + k);
      if (count + k !== i && its.every((x, n) => x <= mine[n] + 1e-7 * Math.abs(mine[n])) && its.some((x, n) => x < mine[n] - 1e-6 * Math.abs(mine[n]))) {
        const gain = its.reduce((sum, x, n) => sum + Math.log(Math.abs(mine[n] / x)), 0);
        if (best < 0 || gain > most) { best = k; most = gain; }
      }
    });
    return best;
  };
  const barOf = (parts, unit, title) => {
    const total = parts.reduce((sum, [, x]) => sum + (Number.isFinite(x) ? x : 0), 0), holder = make("div");
    if (!(total > 0)) return holder;
    holder.append(make("div", `${title}: ${shown(total, unit)}`, { class: "soft" }));
    const bar = make("div", undefined, { class: "bar", role: "img", "aria-label": parts.map(([n, x]) => `${n} ${shown(x, unit)}`).join(", ") });
    const list = make("div", undefined, { class: "soft" });
    for (const [name, x] of parts) if (x > 0) {
      bar.append(make("span", undefined, { style: `width:${(100 * x) / total}%;background:var(--${name})`, title: `${name} ${shown(x, unit)}` }));
      list.append(make("span", undefined, { class: "key", style: `background:var(--${name})` }), `${name} ${((100 * x) / total).toFixed(0)} %  `);
    }
    holder.append(bar, list);
    return holder;
  };
  const tell = (i) => {
    const panel = $("plan"); panel.replaceChildren();
    if (i < 0) { panel.append(make("p", "Click a plan, or walk with the arrow keys and press Enter: what it takes is told here.", { class: "soft" })); return; }
    const one = i >= count ? front[i - count] : null;
    panel.append(make("h3", one ? `Plan ${one.number} of the front${one.picks.length ? `: ${one.picks.join(", ")}` : ""}` : "A plan behind the front"));
    panel.append(make("p", summary(i)));
    const phases = ["forward", "backward", "optimizer", "communication", "idle"];
    panel.append(barOf(phases.map((name) => [name, valueOf(i, `${name}_s`)]), "s", "time of a step"));
    if (data.units.it_energy_J && Number.isFinite(valueOf(i, "forward_J"))) {
      const hosts = Math.max(valueOf(i, "it_energy_J") - valueOf(i, "gpu_energy_J"), 0);
      panel.append(barOf([...phases.map((name) => [name, valueOf(i, `${name}_J`)]), ["hosts", hosts > 1e-4 * valueOf(i, "it_energy_J") ? hosts : 0]], "J", "energy of a step"));
    }
    const table = make("table"), body = make("tbody");
    for (const name of data.told) {
      const row = make("tr"); row.append(make("td", data.labels[name] || name));
      const interval = one && one.intervals[name];
      row.append(make("td", figure(name, valueOf(i, name)) + (interval ? ` (${interval.map((x) => figure(name, x)).join(" to ")})` : "")));
      body.append(row);
    }
    table.append(body); panel.append(table);
    if (!one) {
      const k = beatenBy(i);
      panel.append(make("p", k < 0 ? "No kept plan of the front beats it in both objectives." : `Plan ${front[k].number} of the front beats it: ` +
        data.objectives.map((name) => `${data.labels[name] || name} ${percent(valueOf(count + k, name) / valueOf(i, name) - 1)}`).join(", ") + ". Whether the two can be told apart, moemodel optimize --explain says."));
    } else {
      const details = make("details"); details.append(make("summary", "The plan as YAML"), make("pre", one.plan_yaml)); panel.append(details);
      const k = data.timelines.findIndex((timeline) => timeline.number === one.number);
      if (k >= 0) showTimeline(k);
    }
  };
  const say = (i) => `${i >= count ? `Plan ${front[i - count].number} of the front. ` : ""}${summary(i)}\n${[...new Set([state.x, state.y, ...data.objectives])].map((name) => `${data.labels[name] || name} ${figure(name, valueOf(i, name))}`).join(", ")}`;
  const tipAt = (id, text, x, y) => {
    const tip = $(id); tip.hidden = !text;
    if (!text) return;
    tip.textContent = text;
    const box = tip.parentElement.getBoundingClientRect();
    tip.style.left = `${Math.min(x + 14, Math.max(box.width - 300, 0))}px`; tip.style.top = `${y + 14}px`;
  };
  const hover = (i, spoken = false) => {
    if (i === state.hover) return;
    state.hover = i; drawRings();
    tipAt("tip", i < 0 ? "" : say(i), i < 0 ? 0 : points.x[i], i < 0 ? 0 : points.y[i]);
    if (spoken) $("live").textContent = i < 0 ? "" : say(i);
  };
  const pick = (i) => { state.picked = i; drawRings(); drawClock(); tell(i); };

  // ---- what the reader does -------------------------------------------------------------------------------------------
  const canvas = $("front");
  canvas.addEventListener("mousemove", (event) => hover(nearest(event.offsetX, event.offsetY)));
  canvas.addEventListener("mouseleave", () => hover(-1));
  canvas.addEventListener("click", (event) => pick(nearest(event.offsetX, event.offsetY)));
  canvas.addEventListener("keydown", (event) => {
    const along = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 1, ArrowUp: -1, Home: 0, End: 0 }[event.key];
    if (event.key === "Enter" || event.key === " ") { pick(state.hover); event.preventDefault(); return; }
    if (event.key === "Escape") { hover(-1); pick(-1); return; }
    if (along === undefined) return;
    event.preventDefault();
    const all = event.key === "ArrowUp" || event.key === "ArrowDown";
    const order = [];
    for (let i = all ? 0 : count; i < count + front.length; i++) if (state.visible[i]) order.push(i);
    if (!order.length) return;
    order.sort((a, b) => valueOf(a, state.x) - valueOf(b, state.x) || a - b);
    const at = order.indexOf(state.hover);
    const next = event.key === "Home" ? 0 : event.key === "End" ? order.length - 1 : at < 0 ? 0 : Math.min(Math.max(at + along, 0), order.length - 1);
    hover(order[next], true);
  });
  const line = $("timeline");
  line.addEventListener("mousemove", (event) => tipAt("tip2", sliceAt(event.offsetX, event.offsetY), event.offsetX, event.offsetY));
  line.addEventListener("mouseleave", () => tipAt("tip2", "", 0, 0));
  line.addEventListener("wheel", (event) => { if (!event.ctrlKey && !event.shiftKey) return; event.preventDefault(); zoom(event.deltaY > 0 ? 1.25 : 0.8, view.from + ((event.offsetX - 74) / (line.clientWidth - 88)) * (view.to - view.from)); }, { passive: false });
  line.addEventListener("keydown", (event) => {
    const act = { "+": () => zoom(0.5, (view.from + view.to) / 2), "=": () => zoom(0.5, (view.from + view.to) / 2), "-": () => zoom(2, (view.from + view.to) / 2),
      ArrowRight: () => pan(0.2), ArrowLeft: () => pan(-0.2), Escape: () => { view.from = 0; view.to = 1; drawTimeline(); } }[event.key];
    if (act) { event.preventDefault(); act(); }
  });
  $("in").addEventListener("click", () => zoom(0.5, (view.from + view.to) / 2));
  $("out").addEventListener("click", () => zoom(2, (view.from + view.to) / 2));
  document.addEventListener("keydown", (event) => { if (event.key === "Escape" && state.picked >= 0) pick(-1); });

  const applyFilters = () => {
    state.visible.fill(1);
    for (const [name, off] of Object.entries(state.off)) {
      if (!off.size) continue;
      const column = codes[name], hidden = new Uint8Array(levels(name).length);
      levels(name).forEach((level, n) => { if (off.has(level)) hidden[n] = 1; });
      for (let i = 0; i < count; i++) if (hidden[column[i]]) state.visible[i] = 0;
      front.forEach((one, k) => { if (off.has(one.choices[name])) state.visible[count + k] = 0; });
    }
    const left = state.visible.reduce((a, b) => a + b, 0);
    $("left").textContent = `${left.toLocaleString("en")} of ${(count + front.length).toLocaleString("en")} points`;
    state.hover = -1; tipAt("tip", "", 0, 0); drawFront(); drawClock();
  };
  for (const name of Object.keys(data.choices)) {
    if (levels(name).length < 2) continue;
    state.off[name] = new Set();
    const group = make("fieldset"); group.append(make("legend", data.names[name] || name));
    for (const level of levels(name)) {
      const label = make("label"), box = make("input", undefined, { type: "checkbox", "data-choice": name, value: level });
      box.checked = true;
      box.addEventListener("change", () => { if (box.checked) state.off[name].delete(level); else state.off[name].add(level); applyFilters(); });
      label.append(box, ` ${level}`); group.append(label);
    }
    $("filters").append(group);
  }
  for (const axis of ["x", "y"]) {
    const select = $(axis);
    for (const name of data.told) if (values[name]) select.append(make("option", data.labels[name] || name, { value: name }));
    select.value = state[axis];
    select.addEventListener("change", () => { state[axis] = select.value; drawFront(); });
  }
  for (const row of document.querySelectorAll("#table tbody tr")) {
    const go = () => { pick(count + Number(row.dataset.row)); };
    row.addEventListener("click", go);
    row.addEventListener("keydown", (event) => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); go(); } });
  }
  data.timelines.forEach((one, k) => $("which").append(make("option", one.title, { value: String(k) })));
  $("which").addEventListener("change", (event) => showTimeline(Number(event.target.value)));

  const system = matchMedia("(prefers-color-scheme: dark)");
  const drawAll = () => {
    const theme = document.documentElement.dataset.theme;
    document.documentElement.dataset.dark = (theme ? theme === "dark" : system.matches) ? "1" : "0";
    drawFront(); drawClock(); drawTimeline();
  };
  $("theme").addEventListener("click", () => {
    const root = document.documentElement, dark = root.dataset.dark === "1";
    root.dataset.theme = dark ? "light" : "dark"; $("theme").setAttribute("aria-pressed", String(!dark)); drawAll();
  });
  system.addEventListener("change", drawAll);
  let waiting = 0;
  addEventListener("resize", () => { cancelAnimationFrame(waiting); waiting = requestAnimationFrame(drawAll); });
  if (!data.timelines.length) $("when").hidden = true;
  if (!values.it_energy_J) $("energies").hidden = true;
  tell(-1);
  if (data.timelines.length) showTimeline(0);
  applyFilters(); drawAll();
  document.body.dataset.ready = "1";
})();

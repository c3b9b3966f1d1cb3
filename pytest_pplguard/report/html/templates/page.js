"use strict";
// Theme, copy buttons and plots of a report. Colours are the style sheet's: a plot
// follows the theme without being drawn again. Texts only ever become text nodes.
(() => {
  const root = document.documentElement;
  const NAME = "pplguard-theme";

  function remembered() {
    try {
      return localStorage.getItem(NAME);
    } catch {
      return null; // A browser may keep nothing for files: the system decides.
    }
  }

  function remember(theme) {
    try {
      localStorage.setItem(NAME, theme);
    } catch {
      // As above: the choice holds until the page is closed.
    }
  }

  const chosen = remembered();
  if (chosen === "dark" || chosen === "light") root.dataset.theme = chosen;

  // ----------------------------------------------------------------------- elements

  const SVG = "http://www.w3.org/2000/svg";

  function svg(parent, name, attributes, text) {
    const node = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    if (text !== undefined) node.textContent = text;
    parent.append(node);
    return node;
  }

  function html(parent, name, attributes, text) {
    const node = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    if (text !== undefined) node.textContent = text;
    parent.append(node);
    return node;
  }

  function button(parent, text, act) {
    const node = html(parent, "button", { type: "button" }, text);
    node.addEventListener("click", act);
    return node;
  }

  // ------------------------------------------------------------------------ numbers

  const plain = (value) => String(Number(value.toPrecision(6))).replace("-", "−");
  const signed = (value) =>
    (value < 0 ? "−" : "+") + String(Number(Math.abs(value).toPrecision(3)));
  const known = (value) => value !== null;

  // About `count` round numbers between two others.
  function ticks(low, high, count) {
    const rough = (high - low) / count || 1;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = power * [1, 2, 5, 10].find((factor) => power * factor >= rough * 0.999);
    const found = [];
    for (let at = Math.ceil(low / step); at * step <= high + step * 1e-9; at += 1) {
      found.push(Number((at * step).toPrecision(12)));
    }
    return found;
  }

  // -------------------------------------------------------------------- the windows

  const EDGE = { left: 54, right: 10, top: 10, gap: 26, bottom: 40 };
  const HIGH = { losses: 190, changes: 96 };
  const FEWEST = 5;

  function windowsPlot(figure, data) {
    const count = data.number.length;
    const paired = data.baseline.some(known);
    const changes = data.measured.map((value, i) =>
      known(value) && known(data.baseline[i]) ? value - data.baseline[i] : null);
    // Less is rounding, and neither worse nor better.
    const worse = (change) => change > data.equal, better = (change) => change < -data.equal;
    const all = [...Array(count).keys()];
    const orders = {
      text: [...all].sort((a, b) => data.number[a] - data.number[b]),
      change: [...all].sort((a, b) =>
        known(data.measured[a]) - known(data.measured[b]) || data.weight[b] - data.weight[a]),
      drawn: all,
    };
    let order = "text", from = 0, to = count, active = null, drag = null, scale = null;

    const legend = html(figure, "p", { class: "legend" });
    if (paired) legendKey(legend, "old", "○", "baseline");
    legendKey(legend, "new", "●", "measured");
    if (paired) {
      legendKey(legend, "worse", "▲", "worse");
      legendKey(legend, "better", "▼", "better");
    }
    const tools = html(figure, "div", { class: "tools", role: "group",
      "aria-label": `Order and zoom: ${figure.dataset.name}` });
    const sorts = { text: button(tools, "Text order", () => sort("text")) };
    if (paired) sorts.change = button(tools, "Largest change first", () => sort("change"));
    if (data.drawn) sorts.drawn = button(tools, "As drawn", () => sort("drawn"));
    html(tools, "span", { class: "gap" });
    const nearer = button(tools, "Zoom in", () => zoom(0.5));
    const farther = button(tools, "Zoom out", () => zoom(2));
    const whole = button(tools, "Whole text", () => view(0, count));
    const plot = html(figure, "div", { class: "plot", tabindex: "0", role: "slider",
      "aria-label": `Windows of ${figure.dataset.name}; arrow keys go through them`,
      "aria-valuemin": "1", "aria-valuemax": String(count), "aria-valuenow": "1",
      "aria-valuetext": "no window chosen" });
    const tip = html(plot, "div", { class: "tip", hidden: "" });
    let cursor = null;

    function sort(name) {
      order = name;
      active = null;
      view(0, count);
    }

    function view(first, last) {
      const wide = Math.max(Math.min(FEWEST, count), Math.min(count, Math.round(last - first)));
      from = Math.max(0, Math.min(count - wide, Math.round(first)));
      to = from + wide;
      draw();
    }

    function zoom(factor) {
      const middle = active === null ? (from + to) / 2 : active + 0.5;
      const wide = (to - from) * factor;
      view(middle - wide / 2, middle + wide / 2);
    }

    function draw() {
      const width = plot.clientWidth;
      if (!width) return; // in a part of the page that is closed
      for (const [name, node] of Object.entries(sorts)) {
        node.setAttribute("aria-pressed", String(name === order));
      }
      nearer.disabled = to - from <= Math.min(FEWEST, count);
      farther.disabled = whole.disabled = to - from === count;
      const height = EDGE.top + HIGH.losses + EDGE.bottom + (paired ? EDGE.gap + HIGH.changes : 0);
      plot.querySelector("svg")?.remove();
      const sheet = svg(plot, "svg", { viewBox: `0 0 ${width} ${height}`, height,
        "aria-hidden": "true" });
      const shown = orders[order].slice(from, to);
      const span = width - EDGE.left - EDGE.right;
      const step = span / (to - from);
      const x = (rank) => EDGE.left + (rank - from + 0.5) * step;
      const values = shown.flatMap((i) => [data.measured[i], data.baseline[i]]).filter(known);
      const y = axis(sheet, values, EDGE.top, HIGH.losses, width, 5, plain, false);
      scale = { x, y, step, height, width };
      // Dots are strokes without length: one path for all windows.
      const size = Math.max(3.5, Math.min(6.5, step * 0.75));
      const dots = (of) => shown.map((i, at) =>
        known(of[i]) ? `M${x(from + at).toFixed(1)} ${y(of[i]).toFixed(1)}h0` : "").join("");
      if (paired) {
        for (const [name, is] of [["worse", worse], ["better", better]]) {
          svg(sheet, "path", { class: `link ${name}`, "stroke-width": Math.min(2, step / 2),
            d: shown.map((i, at) => known(changes[i]) && is(changes[i])
              ? `M${x(from + at).toFixed(1)} ${y(data.baseline[i]).toFixed(1)}V${y(data.measured[i]).toFixed(1)}`
              : "").join("") });
        }
        // Rings, which are seen around measured values that are the same.
        const rings = dots(data.baseline);
        svg(sheet, "path", { class: "old", "stroke-width": size * 1.4, d: rings });
        svg(sheet, "path", { class: "hole", "stroke-width": size * 0.85, d: rings });
      }
      svg(sheet, "path", { class: "new", "stroke-width": size * 0.9, d: dots(data.measured) });
      svg(sheet, "path", { class: "lost", d: shown.map((i, at) => known(data.measured[i]) ? ""
        : `M${x(from + at) - 4} ${EDGE.top + 2}l8 8m0 -8l-8 8`).join("") });
      if (paired) drawChanges(sheet, shown, x, step, width);
      drawNumbers(sheet, shown, x, height);
      cursor = svg(sheet, "g", { class: "cursor" });
      point(active, false);
      plot.dataset.drawn = order;
    }

    function drawChanges(sheet, shown, x, step, width) {
      const top = EDGE.top + HIGH.losses + EDGE.gap;
      const values = shown.map((i) => changes[i]).filter(known);
      const y = axis(sheet, [-2 * data.equal, 2 * data.equal, ...values], top, HIGH.changes, width, 3, signed, true);
      scale.change = y;
      const wide = Math.max(0.5, Math.min(9, step * 0.7));
      for (const [name, is] of [["worse", worse], ["better", better]]) {
        svg(sheet, "path", { class: name, "stroke-width": wide, d: shown.map((i, at) =>
          known(changes[i]) && is(changes[i])
            ? `M${x(from + at).toFixed(1)} ${y(0).toFixed(1)}V${y(changes[i]).toFixed(1)}` : "").join("") });
      }
      svg(sheet, "text", { x: EDGE.left, y: top - 8 }, "change, nats a token");
    }

    function drawNumbers(sheet, shown, x, height) {
      const base = height - EDGE.bottom;
      const every = Math.max(1, Math.ceil(34 / scale.step));
      const round = [1, 2, 5, 10, 20, 25, 50, 100, 200, 250, 500, 1000, 2000, 5000, 10000]
        .find((one) => one >= every) ?? every;
      shown.forEach((i, at) => {
        const rank = from + at;
        const label = order === "change" ? rank + 1 : data.number[i];
        // Numbers of a part of the text need not be round.
        const due = count === data.total || order === "change" ? label % round === 0 || label === 1 && round > 1
          : at % every === 0;
        if (due) svg(sheet, "text", { x: x(rank), y: base + 16, "text-anchor": "middle" }, label);
      });
      const words = { text: "window, in the order of the text", drawn: "window, as they were drawn",
        change: "rank by what a window adds to the change" };
      svg(sheet, "text", { x: (EDGE.left + scale.width) / 2, y: base + 33, "text-anchor": "middle" }, words[order]);
    }

    // Chooses the window of a rank, or none.
    function point(rank, aloud) {
      active = rank;
      cursor?.replaceChildren();
      tip.hidden = rank === null;
      if (rank === null || rank < from || rank >= to || !cursor) {
        tip.hidden = true;
        return;
      }
      const i = orders[order][rank];
      const at = scale.x(rank);
      svg(cursor, "line", { x1: at, x2: at, y1: EDGE.top, y2: scale.height - EDGE.bottom });
      for (const [name, value] of [["old", data.baseline[i]], ["new", data.measured[i]]]) {
        if (known(value)) svg(cursor, "circle", { class: name, cx: at, cy: scale.y(value), r: 5.5 });
      }
      tip.replaceChildren();
      html(tip, "b", {}, `Window ${data.number[i]} of ${data.total}`);
      if (data.place[i]) html(tip, "span", {}, data.place[i]);
      if (data.words[i]) html(tip, "q", {}, `“${data.words[i]}”`);
      const facts = html(tip, "dl", {});
      const said = [];
      for (const [name, value] of [["baseline", known(data.baseline[i]) ? plain(data.baseline[i]) : null],
        ["measured", known(data.measured[i]) ? plain(data.measured[i]) : "not finite"],
        ["change", known(changes[i]) ? signed(changes[i]) : null]]) {
        if (value === null) continue;
        html(facts, "dt", {}, name);
        html(facts, "dd", {}, value);
        said.push(`${name} ${value}`);
      }
      const room = scale.width - tip.offsetWidth;
      const left = at + 14 <= room ? at + 14 : Math.max(0, at - 14 - tip.offsetWidth);
      tip.style.transform = `translate(${Math.min(left, Math.max(0, room))}px, ${EDGE.top}px)`;
      if (aloud) {
        plot.setAttribute("aria-valuenow", String(rank + 1));
        plot.setAttribute("aria-valuetext",
          `window ${data.number[i]}, ${said.join(", ")}${data.place[i] ? `, ${data.place[i]}` : ""}`);
      }
    }

    function rankAt(event) {
      const box = plot.getBoundingClientRect();
      const rank = from + Math.floor((event.clientX - box.left - EDGE.left) / scale.step);
      return Math.max(from, Math.min(to - 1, rank));
    }

    plot.addEventListener("pointermove", (event) => {
      if (!scale) return;
      const rank = rankAt(event);
      point(rank, false);
      if (drag === null) return;
      drag.last = rank;
      drag.box ??= svg(plot.querySelector("svg"), "rect", { class: "picked", y: EDGE.top,
        height: scale.height - EDGE.top - EDGE.bottom });
      const [first, last] = [Math.min(drag.first, rank), Math.max(drag.first, rank)];
      drag.box.setAttribute("x", scale.x(first) - scale.step / 2);
      drag.box.setAttribute("width", (last - first + 1) * scale.step);
    });
    plot.addEventListener("pointerdown", (event) => {
      if (!scale || event.button !== 0) return;
      // With a finger, moving looks around; the buttons zoom.
      if (event.pointerType === "mouse") {
        drag = { first: rankAt(event), last: rankAt(event), box: null };
        plot.setPointerCapture(event.pointerId);
      }
      point(rankAt(event), false);
    });
    plot.addEventListener("pointerup", () => {
      const done = drag;
      drag = null;
      done?.box?.remove();
      if (done && Math.abs(done.last - done.first) >= 2) {
        view(Math.min(done.first, done.last), Math.max(done.first, done.last) + 1);
      }
    });
    plot.addEventListener("pointerleave", () => { if (drag === null) point(null, false); });
    plot.addEventListener("dblclick", () => view(0, count));
    plot.addEventListener("blur", () => point(null, false));
    plot.addEventListener("keydown", (event) => {
      const now = active ?? (event.key === "ArrowLeft" ? to : from - 1);
      const page = Math.max(1, Math.round((to - from) / 10));
      const goal = { ArrowRight: now + 1, ArrowLeft: now - 1, ArrowUp: now + 1, ArrowDown: now - 1,
        PageUp: now + page, PageDown: now - page, Home: 0, End: count - 1 }[event.key];
      if (goal !== undefined) {
        const rank = Math.max(0, Math.min(count - 1, goal));
        if (rank < from) view(rank, rank + to - from);
        if (rank >= to) view(rank + 1 - (to - from), rank + 1);
        point(rank, true);
      } else if (event.key === "+") zoom(0.5);
      else if (event.key === "-") zoom(2);
      else if (event.key === "0") view(0, count);
      else if (event.key === "Escape") point(null, false);
      else return;
      event.preventDefault();
    });
    return { plot, draw };
  }

  function legendKey(legend, name, sign, text) {
    const key = html(legend, "span", { class: "key" });
    html(key, "i", { class: `sign-${name}`, "aria-hidden": "true" }, sign);
    key.append(text);
  }

  // A y axis with its grid; gives the function from a value to its place.
  function axis(sheet, values, top, height, width, count, show, hasZero) {
    let low = Math.min(...values), high = Math.max(...values);
    if (!values.length) [low, high] = [0, 1];
    const pad = (high - low || Math.abs(high) * 0.1 || 1) * 0.06;
    low -= pad;
    high += pad;
    const y = (value) => top + (high - value) / (high - low) * height;
    for (const tick of ticks(low, high, count)) {
      const zero = hasZero && tick === 0;
      svg(sheet, "line", { class: zero ? "zero" : "grid", x1: EDGE.left, x2: width - EDGE.right,
        y1: y(tick), y2: y(tick) });
      svg(sheet, "text", { x: EDGE.left - 8, y: y(tick) + 4, "text-anchor": "end" },
        zero ? "0" : show(tick));
    }
    return y;
  }

  // ------------------------------------------------------------------ the histogram

  function histogramPlot(figure, data) {
    const { start, width: bin, counts, mean, half } = data.histogram;
    const end = start + bin * counts.length;
    const most = Math.max(...counts);
    const plot = html(figure, "div", { class: "plot", role: "img", "aria-label": figure.dataset.name });
    const tip = html(plot, "div", { class: "tip", hidden: "" });
    const caption = html(figure, "p", { class: "legend" });
    html(caption, "span", { class: "key" }, half === null ? "line: mean"
      : "line: mean; grey: its 95 % interval");
    let x = null, scaleBin = 1;

    function draw() {
      const width = plot.clientWidth;
      if (!width) return;
      const height = EDGE.top + HIGH.losses + EDGE.bottom;
      plot.querySelector("svg")?.remove();
      const sheet = svg(plot, "svg", { viewBox: `0 0 ${width} ${height}`, height, "aria-hidden": "true" });
      const left = 34, base = EDGE.top + HIGH.losses;
      // Zero and the mean are always on the axis.
      const low = Math.min(start, 0, mean - (half ?? 0)), high = Math.max(end, 0, mean + (half ?? 0));
      const room = width - left - EDGE.right;
      x = (value) => left + (value - low) / (high - low) * room;
      scaleBin = bin / (high - low) * room;
      const y = (value) => base - value / most * (HIGH.losses - 8);
      for (const tick of ticks(0, most, 4)) {
        if (!Number.isInteger(tick)) continue;
        svg(sheet, "line", { class: "grid", x1: left, x2: width - EDGE.right, y1: y(tick), y2: y(tick) });
        svg(sheet, "text", { x: left - 6, y: y(tick) + 4, "text-anchor": "end" }, tick);
      }
      if (half !== null) {
        svg(sheet, "rect", { class: "interval", x: x(mean - half), y: EDGE.top,
          width: Math.max(1, x(mean + half) - x(mean - half)), height: HIGH.losses });
      }
      counts.forEach((value, i) => {
        const at = start + i * bin;
        if (value) {
          svg(sheet, "rect", { class: at + bin / 2 > 0 ? "worse" : "better", "stroke-width": 0,
            x: x(at) + 0.5, width: Math.max(0.5, scaleBin - 1), y: y(value), height: base - y(value) });
        }
      });
      svg(sheet, "line", { class: "axis", x1: left, x2: width - EDGE.right, y1: base, y2: base });
      svg(sheet, "line", { class: "zero", x1: x(0), x2: x(0), y1: EDGE.top, y2: base });
      svg(sheet, "line", { class: "mean", x1: x(mean), x2: x(mean), y1: EDGE.top, y2: base });
      for (const tick of ticks(low, high, Math.max(2, Math.floor(room / 70)))) {
        svg(sheet, "text", { x: x(tick), y: base + 16, "text-anchor": "middle" }, tick ? signed(tick) : "0");
      }
      svg(sheet, "text", { x: left + room / 2, y: base + 33, "text-anchor": "middle" }, "nats a token");
      plot.dataset.drawn = "histogram";
    }

    plot.addEventListener("pointermove", (event) => {
      if (!x) return;
      const i = Math.floor((event.clientX - plot.getBoundingClientRect().left - x(start)) / scaleBin);
      tip.hidden = !counts[i];
      if (!counts[i]) return;
      tip.textContent = `${counts[i]} ${counts[i] === 1 ? "window" : "windows"}: ${
        signed(start + i * bin)} to ${signed(start + (i + 1) * bin)}`;
      const place = Math.min(x(start + i * bin), plot.clientWidth - tip.offsetWidth);
      tip.style.transform = `translate(${Math.max(0, place)}px, ${EDGE.top}px)`;
    });
    plot.addEventListener("pointerleave", () => { tip.hidden = true; });
    return { plot, draw };
  }

  // ----------------------------------------------------------------------- the page

  const KINDS = { windows: windowsPlot, histogram: histogramPlot };

  function drawAll() {
    const widths = new WeakMap();
    const draws = new WeakMap();
    const sizes = new ResizeObserver((entries) => {
      for (const { target } of entries) {
        if (widths.get(target) === target.clientWidth) continue;
        widths.set(target, target.clientWidth);
        draws.get(target)();
      }
    });
    for (const box of document.querySelectorAll(".plots")) {
      const data = JSON.parse(box.querySelector("script.data").textContent);
      for (const figure of box.querySelectorAll("[data-plot]")) {
        const { plot, draw } = KINDS[figure.dataset.plot](figure, data);
        draws.set(plot, draw);
        draw();
        widths.set(plot, plot.clientWidth);
        sizes.observe(plot);
      }
    }
    performance.mark("pplguard-drawn");
  }

  function offerThemes() {
    const toggle = document.getElementById("theme");
    const system = matchMedia("(prefers-color-scheme: dark)");
    const isDark = () => root.dataset.theme ? root.dataset.theme === "dark" : system.matches;
    const show = () => {
      toggle.textContent = isDark() ? "Light" : "Dark";
      toggle.setAttribute("aria-label", `${toggle.textContent} theme`);
    };
    toggle.addEventListener("click", () => {
      root.dataset.theme = isDark() ? "light" : "dark";
      remember(root.dataset.theme);
      show();
    });
    system.addEventListener("change", show);
    toggle.hidden = false;
    show();
  }

  function offerCopies() {
    const said = document.getElementById("said");
    for (const node of document.querySelectorAll(".copy")) {
      const source = node.parentElement.querySelector("code");
      node.hidden = false;
      node.addEventListener("click", async () => {
        let done = true;
        try {
          await navigator.clipboard.writeText(source.textContent);
        } catch {
          // Not allowed here: the text is marked, and a key copies it.
          getSelection().selectAllChildren(source);
          done = document.execCommand("copy");
        }
        node.textContent = done ? "Copied" : "Marked";
        said.textContent = done ? "The command was copied." : "The command is marked; copy it now.";
        setTimeout(() => { node.textContent = "Copy"; }, 2000);
      });
    }
  }

  document.addEventListener("DOMContentLoaded", () => {
    offerThemes();
    offerCopies();
    drawAll();
  });
  addEventListener("beforeprint", () => {
    for (const node of document.querySelectorAll("details.losses")) node.open = true;
  });
})();

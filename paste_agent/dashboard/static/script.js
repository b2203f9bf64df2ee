// Hover, zoom, refresh, and times in the viewer's zone. Every page works without it.
"use strict";
(() => {
  const FORMS = {
    clock: { hour: "2-digit", minute: "2-digit", hourCycle: "h23" },
    second: { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" },
    day: { day: "2-digit", month: "short" },
    "day-clock": { day: "2-digit", month: "short", hour: "2-digit", minute: "2-digit", hourCycle: "h23" },
    full: { year: "numeric", month: "short", day: "2-digit", hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23", timeZoneName: "short" },
  };
  const formats = {};
  const say = (date, form) => {
    const name = FORMS[form] ? form : "full";
    formats[name] = formats[name] || new Intl.DateTimeFormat(undefined, FORMS[name]);
    return formats[name].format(date);
  };

  // -- times -----------------------------------------------------------------------------------------------------

  const localize = (root) => {
    for (const element of root.querySelectorAll("time[datetime]")) {
      const date = new Date(element.dateTime);
      if (!isNaN(date)) {
        element.textContent = say(date, element.dataset.form);
        element.title = element.dateTime;
      }
    }
    for (const element of root.querySelectorAll("text[data-time]")) {
      element.textContent = say(new Date(1000 * Number(element.dataset.time)), element.dataset.form);
    }
  };

  // -- charts: what a moment's values are, and a closer look by dragging --------------------------------------------

  const SVG = "http://www.w3.org/2000/svg";
  const make = (name, attributes) => {
    const element = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    return element;
  };

  const watch = (figure) => {
    let data;
    try {
      data = JSON.parse(figure.dataset.chart);
    } catch (error) {
      return;
    }
    const svg = figure.querySelector("svg");
    const count = data.lines.length ? data.lines[0][1].length : 0;
    if (!svg || !count) return;
    const [left, right] = data.x;
    const height = svg.viewBox.baseVal.height;
    const cursor = make("line", { y1: 4, y2: height - 20, class: "cursor", visibility: "hidden" });
    const zoom = make("rect", { y: 4, height: height - 24, class: "zoom", visibility: "hidden" });
    svg.append(zoom, cursor);
    const tip = document.createElement("div");
    tip.className = "tip";
    tip.hidden = true;
    figure.append(tip);
    let from = null;

    const at = (event) => {
      const box = svg.getBoundingClientRect();
      const x = ((event.clientX - box.left) / box.width) * svg.viewBox.baseVal.width;
      return Math.min(Math.max((x - left) / (right - left), 0), 1);
    };
    const x = (share) => left + share * (right - left);
    const time = (share) => data.start + share * count * data.step;
    const hide = () => {
      cursor.setAttribute("visibility", "hidden");
      tip.hidden = true;
    };

    svg.addEventListener("pointermove", (event) => {
      const share = at(event);
      const place = Math.min(count - 1, Math.floor(share * count));
      const middle = x((place + 0.5) / count);
      cursor.setAttribute("x1", middle);
      cursor.setAttribute("x2", middle);
      cursor.setAttribute("visibility", "visible");
      const table = document.createElement("table");
      const row = (name, value) => {
        const line = table.insertRow();
        line.insertCell().textContent = name;
        line.insertCell().textContent = value;
      };
      row(say(new Date(1000 * (data.start + place * data.step)), data.step >= 3600 ? "day-clock" : data.step < 60 ? "second" : "clock"), "");
      for (const [label, values] of data.lines) row(label, values[place]);
      tip.replaceChildren(table);
      tip.hidden = false;
      // Classes and attributes are what the page's policy allows; the script's own access to the style is allowed as well.
      const box = figure.getBoundingClientRect();
      const beside = event.clientX - box.left;
      tip.style.left = beside > box.width / 2 ? "auto" : `${beside + 14}px`;
      tip.style.right = beside > box.width / 2 ? `${box.width - beside + 14}px` : "auto";
      if (from !== null) {
        zoom.setAttribute("x", x(Math.min(from, share)));
        zoom.setAttribute("width", Math.abs(x(share) - x(from)));
        zoom.setAttribute("visibility", "visible");
      }
    });
    svg.addEventListener("pointerleave", () => {
      if (from === null) hide();
    });
    svg.addEventListener("pointerdown", (event) => {
      if (event.button !== 0 || event.pointerType === "touch") return;
      from = at(event);
      svg.setPointerCapture(event.pointerId);
      event.preventDefault();
    });
    svg.addEventListener("pointerup", (event) => {
      if (from === null) return;
      const [begin, end] = [from, at(event)].sort((a, b) => a - b);
      from = null;
      zoom.setAttribute("visibility", "hidden");
      if (end - begin < 0.02) return;
      const url = new URL(location.href);
      for (const name of ["range", "before"]) url.searchParams.delete(name);
      url.searchParams.set("from", Math.floor(time(begin)));
      url.searchParams.set("to", Math.ceil(Math.max(time(end), time(begin) + 60)));
      location.assign(url);
    });
    svg.addEventListener("pointercancel", () => {
      from = null;
      zoom.setAttribute("visibility", "hidden");
      hide();
    });
  };

  const prepare = (root) => {
    localize(root);
    root.querySelectorAll("figure[data-chart]").forEach(watch);
  };

  // -- refresh -----------------------------------------------------------------------------------------------------

  const EVERY_MS = 10000;
  const KEY = "paste-agent refresh";
  const button = document.querySelector("button.refresh");
  let on = false;
  let timer = 0;

  const isBusy = (main) =>
    main.contains(document.activeElement) && /^(INPUT|SELECT)$/.test(document.activeElement.tagName);

  const refresh = async () => {
    const main = document.querySelector("main");
    if (document.hidden || isBusy(main) || document.querySelector(".tip:not([hidden])")) return;
    let page;
    try {
      const response = await fetch(location.href, { credentials: "same-origin" });
      if (!response.ok) return;
      page = new DOMParser().parseFromString(await response.text(), "text/html");
    } catch (error) {
      return; // the service is away for a moment
    }
    const fresh = page.querySelector("main");
    if (!fresh || !on) return;
    // What was opened stays open; where the focus was it is again.
    const opened = [...main.querySelectorAll("details")].map((element) => element.open);
    const focusable = "a, button, summary, [tabindex]";
    const place = [...main.querySelectorAll(focusable)].indexOf(document.activeElement);
    const scrolled = [...main.querySelectorAll(".table")].map((element) => element.scrollLeft);
    main.replaceChildren(...fresh.childNodes);
    [...main.querySelectorAll("details")].forEach((element, index) => (element.open = Boolean(opened[index])));
    [...main.querySelectorAll(".table")].forEach((element, index) => (element.scrollLeft = scrolled[index] || 0));
    prepare(main);
    if (place >= 0) [...main.querySelectorAll(focusable)][place]?.focus({ preventScroll: true });
  };

  const set = (wanted) => {
    on = wanted;
    button.setAttribute("aria-pressed", String(on));
    button.textContent = on ? "Refreshing" : "Refresh";
    button.title = on ? "Every 10 seconds; click to stop" : "Load this page anew every 10 seconds";
    clearInterval(timer);
    if (on) timer = setInterval(refresh, EVERY_MS);
    try {
      localStorage.setItem(KEY, on ? "1" : "0");
    } catch (error) {
      // not remembered, where a browser forbids it
    }
  };

  if (button) {
    button.hidden = false;
    let wanted = false;
    try {
      wanted = localStorage.getItem(KEY) === "1";
    } catch (error) {
      wanted = false;
    }
    set(wanted);
    button.addEventListener("click", () => {
      set(!on);
      if (on) refresh();
    });
  }
  prepare(document);
})();

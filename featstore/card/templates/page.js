"use strict";
for (const atlas of document.querySelectorAll(".atlas")) {
  const place = atlas.querySelector(".drawing");
  const field = atlas.querySelector("input");
  const status = atlas.querySelector(".status");
  const hits = atlas.querySelector(".hits");
  const panel = atlas.querySelector(".chosen");
  const whole = atlas.querySelector(".whole");
  const figure = atlas.closest("figure");
  const tip = figure.querySelector(".tip");
  const { ids, rows, classes, labels, neighbours, cosines, pictures } = JSON.parse(figure.querySelector(".samples").textContent);
  const MOST_HITS = 50;
  const words = ids.map((id, at) => `${id}\n${labels[at] < 0 ? "" : classes[labels[at]]}`.toLowerCase());
  let found = null;
  let chosen = -1;

  // Every text goes into the page as text, never as markup.
  const element = (name, text, kind) => {
    const made = document.createElement(name);
    if (text !== undefined) made.textContent = text;
    if (kind) made.className = kind;
    return made;
  };
  const className = (at) => (labels[at] < 0 ? "" : classes[labels[at]]);
  const picture = (at) => {
    if (!pictures[at]) return element("span", "", "missing-small");
    const made = element("img");
    made.src = pictures[at];
    made.alt = "";
    return made;
  };
  const item = (at, value) => {
    const button = element("button", undefined, pictures.length ? "pictured" : "");
    button.type = "button";
    button.title = ids[at];
    if (pictures.length) button.append(picture(at));
    const text = element("span", undefined, "id");
    text.append(ids[at]);
    if (className(at)) text.append(element("span", className(at), "class"));
    button.append(text);
    if (value !== undefined) button.append(element("span", value.toFixed(3), "cosine"));
    button.addEventListener("click", () => choose(at));
    const entry = element("li");
    entry.append(button);
    return entry;
  };

  const mark = () => {
    const last = place.data.length;
    const points = place.data[0];
    const at = (list, axis) => list.map((one) => points[axis][one]);
    const lists = [found ?? [], chosen < 0 ? [] : neighbours[chosen], chosen < 0 ? [] : [chosen]];
    const rings = (found ?? []).length > 400 ? [] : lists[0];
    lists[0] = rings;
    Plotly.restyle(place, { x: lists.map((list) => at(list, "x")), y: lists.map((list) => at(list, "y")) }, [last - 3, last - 2, last - 1]);
    const bright = found === null ? null : new Set([...found, ...lists[1], ...lists[2]]);
    Plotly.restyle(place, { "marker.opacity": [bright === null ? 0.8 : ids.map((_, one) => (bright.has(one) ? 0.95 : 0.1))] }, [0]);
  };
  // Without a search, the classes with their colours: a legend, and a filter.
  const members = classes.map((_, label) => labels.flatMap((own, at) => (own === label ? [at] : [])));
  const legend = () => members.map((own, label) => {
    const button = element("button", undefined, "legend");
    button.type = "button";
    const dot = element("span", "", "dot");
    dot.style.background = place.data[0].marker.color[own[0]];
    button.append(dot, element("span", classes[label], "id"), element("span", own.length.toLocaleString("en"), "cosine"));
    button.addEventListener("click", () => { field.value = classes[label]; show(own); });
    const entry = element("li");
    entry.append(button);
    return entry;
  });
  const show = (list) => {
    found = list;
    hits.replaceChildren(...(found === null ? legend() : found.slice(0, MOST_HITS).map((at) => item(at))));
    status.textContent = found === null
      ? "Click a point for its nearest neighbours" + (classes.length ? ", or a class to show it alone." : ".")
      : `${found.length.toLocaleString("en")} of ${ids.length.toLocaleString("en")} images${found.length > MOST_HITS ? `; the first ${MOST_HITS}:` : ""}`;
    mark();
  };
  const search = () => {
    const wanted = field.value.trim().toLowerCase();
    show(wanted === "" ? null : words.flatMap((text, at) => (text.includes(wanted) ? [at] : [])));
  };
  const choose = (at) => {
    chosen = at;
    const about = [`row ${rows[at]}`, className(at)].filter(Boolean).join(", ");
    const list = element("ol");
    list.append(...neighbours[at].map((other, rank) => item(other, cosines[at][rank])));
    panel.replaceChildren(
      element("h4", ids[at]), element("p", about), ...(pictures[at] ? [picture(at)] : []),
      element("p", "Nearest neighbours and their cosines"), list);
    panel.scrollTop = 0;
    mark();
  };
  field.addEventListener("input", search);
  whole.addEventListener("click", () => Plotly.relayout(place, { "xaxis.autorange": true, "yaxis.autorange": true }));

  let listening = false;
  document.addEventListener("drawn", () => {
    // A mouse may draw a box to come closer; a finger has to scroll the page.
    if (matchMedia("(pointer: fine)").matches) Plotly.relayout(place, { dragmode: "zoom", "xaxis.fixedrange": false, "yaxis.fixedrange": false });
    search();
    if (listening) return;
    listening = true;
    place.on("plotly_click", ({ points }) => { if (points[0].curveNumber === 0) choose(points[0].pointNumber); });
    place.on("plotly_relayout", () => { whole.hidden = place.layout.xaxis.autorange !== false; });
    place.on("plotly_hover", ({ points, event }) => {
      const source = points[0].curveNumber === 0 && pictures[points[0].pointNumber];
      tip.hidden = !source;
      if (!source) return;
      tip.src = source;
      tip.style.left = `${Math.max(8, event.clientX - 120)}px`;
      tip.style.top = `${Math.max(8, event.clientY - 120)}px`;
    });
    place.on("plotly_unhover", () => { tip.hidden = true; });
  });
}

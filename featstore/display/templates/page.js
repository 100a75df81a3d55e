"use strict";
(async () => {
  const page = document.documentElement;
  const packed = Uint8Array.from(atob(document.getElementById("library").textContent), (c) => c.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  const library = document.createElement("script");
  library.textContent = await new Response(stream).text();
  document.head.append(library);

  const colour = (name) => getComputedStyle(page).getPropertyValue(name).trim();
  const themed = (layout) => {
    const axes = {};
    for (const [name, axis] of Object.entries(layout)) {
      if (/^[xy]axis/.test(name)) axes[name] = { gridcolor: colour("--rule"), linecolor: colour("--rule"), zerolinecolor: colour("--rule"), ...axis };
    }
    return {
      ...layout, ...axes,
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: colour("--soft") },
      hoverlabel: { bgcolor: colour("--paper"), bordercolor: colour("--rule"), font: { color: colour("--ink") }, align: "left" },
    };
  };
  // Cells are pale in light mode and dark in dark mode; plotly would guess a colour for the text on them.
  const readable = (data) => data.map((trace) => trace.type === "heatmap" || trace.mode === "text" ? { ...trace, textfont: { ...trace.textfont, color: colour("--ink") } } : trace);
  // Names on a plot that would overlap an earlier one, of a larger class, or leave the plot are hidden.
  const thin = (place) => {
    const kept = [];
    const whole = place.getBoundingClientRect();
    for (const name of place.querySelectorAll(".textpoint text")) {
      name.style.visibility = "";
      const own = name.getBoundingClientRect();
      const clash = own.left < whole.left || own.right > whole.right || kept.some((other) => own.left < other.right + 10 && other.left < own.right + 10 && own.top < other.bottom + 8 && other.top < own.bottom + 8);
      if (clash) name.style.visibility = "hidden";
      else kept.push(own);
    }
  };
  const drawings = [...document.querySelectorAll(".drawing")].map((place) => [place, JSON.parse(place.nextElementSibling.textContent)]);
  const draw = async () => {
    await Promise.all(drawings.map(([place, spec]) =>
      Plotly.react(place, readable(spec.data), themed(spec.layout), { displayModeBar: false, responsive: true, scrollZoom: false, doubleClick: false })));
    for (const [place] of drawings) thin(place);
    document.dispatchEvent(new Event("drawn"));
  };
  await draw();
  for (const [place] of drawings) place.on("plotly_afterplot", () => thin(place));
  page.dataset.drawn = drawings.length;
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
})().catch((error) => {
  document.querySelector("footer").append(`The plots could not be drawn (${error}).`);
});

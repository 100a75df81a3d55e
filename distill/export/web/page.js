// Run a model with onnxruntime-web on an image and show its answer and the times.

const byId = (id) => document.getElementById(id);
const told = JSON.parse(byId("told").textContent);
const rule = {
  ...told.preprocessing,
  steps: Object.fromEntries(told.preprocessing.steps.map((step) => [step.step, step])),
};
const names = rule.output.label_names;
const TOP = Math.min(5, names.length);
const TIMED = 30;

const state = { ort: null, sessions: new Map(), picture: null, shown: 0 };

const bytesOf = (id) => {
  const text = atob(byId(id).textContent);
  return Uint8Array.from(text, (letter) => letter.charCodeAt(0));
};

const unpack = async (id) => {
  const stream = new Blob([bytesOf(id)]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).arrayBuffer();
};

const say = (text, wrong = false) => {
  byId("status").textContent = text;
  byId("status").classList.toggle("wrong", wrong);
};

const failed = (what, error) => {
  say(`${what}: ${String((error && error.message) || error).split("\n")[0]}`, true);
  byId("result").hidden = true;
  publish({ error: byId("status").textContent });
};

// State for scripts that drive the page.
const publish = (value) => {
  state.shown += 1;
  document.documentElement.dataset.answer = JSON.stringify({ number: state.shown, ...value });
};

const start = async () => {
  if (typeof WebAssembly === "undefined" || typeof DecompressionStream === "undefined") {
    throw new Error("this browser lacks WebAssembly or DecompressionStream; use a version of 2023 or later");
  }
  const code = await unpack("runtime-code");
  const address = URL.createObjectURL(new Blob([code], { type: "text/javascript" }));
  state.ort = await import(address);
  state.ort.env.wasm.numThreads = 1;
  state.ort.env.wasm.wasmBinary = await unpack("runtime-wasm");
  state.ort.env.logLevel = "error";
};

const sessionOf = async (name) => {
  if (!state.sessions.has(name)) {
    const model = new Uint8Array(await unpack(`model-${name}`));
    const session = await state.ort.InferenceSession.create(model, { executionProviders: ["wasm"] });
    state.sessions.set(name, session);
    // The first call plans memory; it is not timed.
    await run(session, new (rule.input.dtype === "uint8" ? Uint8Array : Float32Array)(3 * rule.input.shape[2] * rule.input.shape[3]));
  }
  return state.sessions.get(name);
};

const run = async (session, values) => {
  const tensor = new state.ort.Tensor(rule.input.dtype, values, [1, 3, rule.input.shape[2], rule.input.shape[3]]);
  const begun = performance.now();
  const found = await session.run({ [rule.input.name]: tensor });
  const ms = performance.now() - begun;
  return { logits: Array.from(found[rule.output.name].data), ms };
};

const softmax = (logits) => {
  const most = Math.max(...logits);
  const powers = logits.map((value) => Math.exp(value - most));
  const sum = powers.reduce((a, b) => a + b, 0);
  return powers.map((value) => value / sum);
};

const chosen = () => document.querySelector("input[name=model]:checked").value;

const classify = async () => {
  if (!state.picture) return;
  const name = chosen();
  const begun = performance.now();
  const region = Preprocess.crop(state.picture.decoded, rule);
  const values = Preprocess.input(region, rule.input);
  const prepared = performance.now() - begun;
  const session = await sessionOf(name);
  const { logits, ms } = await run(session, values);
  show(region, softmax(logits), prepared, ms);
  publish({ model: name, file: state.picture.name, logits, probabilities: softmax(logits), crop: Array.from(region.data), ms });
};

const show = (region, shares, prepared, ms) => {
  const order = shares.map((share, at) => [share, at]).sort((a, b) => b[0] - a[0]).slice(0, TOP);
  const list = byId("answers");
  list.replaceChildren(
    ...order.map(([share, at]) => {
      const row = document.createElement("li");
      const label = document.createElement("span");
      const value = document.createElement("output");
      const bar = document.createElement("meter");
      label.textContent = names[at];
      value.textContent = `${(100 * share).toFixed(1)}%`;
      bar.max = 1;
      bar.value = share;
      bar.setAttribute("aria-label", `${names[at]}: ${value.textContent}`);
      row.append(label, value, bar);
      return row;
    }),
  );
  byId("time").textContent = `${ms.toFixed(ms < 10 ? 2 : 0)} ms`;
  byId("prepared").textContent = `${prepared.toFixed(prepared < 10 ? 1 : 0)} ms`;
  const canvas = byId("seen");
  canvas.width = region.width;
  canvas.height = region.height;
  const rgba = new ImageData(region.width, region.height);
  for (let at = 0; at < region.width * region.height; at += 1) {
    rgba.data.set([...region.data.subarray(3 * at, 3 * at + 3), 255], 4 * at);
  }
  canvas.getContext("2d").putImageData(rgba, 0, 0);
  byId("result").hidden = false;
  byId("many").textContent = "";
};

const take = async (blob, name) => {
  say(`Reading ${name}`);
  let decoded;
  try {
    decoded = await Preprocess.decode(blob);
  } catch (error) {
    state.picture = null;
    failed(`${name}: this browser cannot decode the image`, error);
    return;
  }
  state.picture = { decoded, name };
  if (byId("picture").src) URL.revokeObjectURL(byId("picture").src);
  byId("picture").src = URL.createObjectURL(blob);
  byId("picture").alt = name;
  await again();
};

const again = async () => {
  try {
    await classify();
    if (state.picture) say(`${state.picture.name}, ${state.picture.decoded.width} x ${state.picture.decoded.height} pixels`);
  } catch (error) {
    failed("The model could not run", error);
  }
};

const measure = async () => {
  const values = Preprocess.input(Preprocess.crop(state.picture.decoded, rule), rule.input);
  const session = await sessionOf(chosen());
  const times = [];
  for (let i = 0; i < TIMED; i += 1) times.push((await run(session, values)).ms);
  times.sort((a, b) => a - b);
  const at = (share) => times[Math.min(TIMED - 1, Math.floor(share * TIMED))].toFixed(2);
  byId("many").textContent = `${TIMED} runs: median ${at(0.5)} ms, 95th percentile ${at(0.95)} ms`;
};

// Compare decoding, resizing and arithmetic of this browser with the export on the reference image.
const check = async () => {
  const picture = new Blob([bytesOf("reference-picture")], { type: "image/png" });
  const values = Preprocess.input(Preprocess.crop(await Preprocess.decode(picture), rule), rule.input);
  const lines = [];
  for (const { name, label } of told.models) {
    const { logits } = await run(await sessionOf(name), values);
    const expected = rule.reference.logits[name];
    const far = Math.max(...logits.map((value, at) => Math.abs(value - expected[at])));
    lines.push({ name, label, far });
  }
  byId("check").textContent = lines
    .map(({ label, far }) => `${label}: ${far.toExponential(1)}`)
    .join("; ");
  document.documentElement.dataset.check = JSON.stringify(lines);
};

const listen = () => {
  byId("file").addEventListener("change", (event) => {
    const [file] = event.target.files;
    if (file) take(file, file.name);
    event.target.value = "";
  });
  const drop = byId("drop");
  for (const kind of ["dragenter", "dragover"]) {
    document.addEventListener(kind, (event) => {
      event.preventDefault();
      drop.classList.add("over");
    });
  }
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) drop.classList.remove("over");
  });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    const [file] = event.dataTransfer.files;
    if (file) take(file, file.name);
    else say("Not a file: save the image first, then choose it", true);
  });
  byId("example").addEventListener("click", () =>
    take(new Blob([bytesOf("reference-picture")], { type: "image/png" }), "Reference image"),
  );
  byId("measure").addEventListener("click", () => measure().catch((error) => failed("Measurement failed", error)));
  for (const choice of document.querySelectorAll("input[name=model]")) choice.addEventListener("change", again);
};

(async () => {
  try {
    await start();
    await check();
    listen();
    for (const item of document.querySelectorAll("[disabled]")) item.disabled = false;
    say("Ready. Images stay on this device.");
  } catch (error) {
    failed("The model could not be loaded", error);
  }
  document.documentElement.dataset.drawn = "";
})();

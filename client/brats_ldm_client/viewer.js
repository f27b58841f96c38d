// One slice at a time on a canvas, with window and level. No library, no network.
// A page may hold several viewers: everything is found below the element that this script stands in.
(() => {
  "use strict";
  const root = document.currentScript.closest(".viewer");
  const part = (name) => root.querySelector(`[data-part="${name}"]`);
  const facts = JSON.parse(part("data").textContent);
  const canvas = part("canvas");
  const pen = canvas.getContext("2d");
  const native = document.createElement("canvas"); // the slice, one pixel for one value
  const MARGIN = 22, STRIP = 24; // CSS pixels: for the letters around a slice, for the mark below it
  const ARRAYS = { u1: Uint8Array, u2: Uint16Array, f4: Float32Array };
  const view = { index: 0, width: 1, level: 0.5, zoom: 1, x: 0, y: 0, smooth: false, move: false };
  const span = facts.full[1] - facts.full[0];
  let images = [];
  const controls = [canvas, root.querySelector(".v-side")];
  for (const each of controls) each.inert = true; // until there are values

  // The values of one slice, row by row as on the screen.
  async function decode(item) {
    const bytes = Uint8Array.from(atob(item.data), (letter) => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    const raw = new ARRAYS[item.kind](await new Response(stream).arrayBuffer());
    if (item.kind === "f4") return raw;
    return Float32Array.from(raw, (level) => item.low + (level / item.largest) * item.range);
  }

  const item = () => facts.images[view.index];
  const [pixelX, pixelY] = [(it) => (it.mm ? it.mm[0] : 1), (it) => (it.mm ? it.mm[1] : 1)];

  // Grey level = 255 (value - low) / width, where low = level - width / 2. The array clips, and rounds halves to even.
  function toGrey(values, low, width, size) {
    const grey = new ImageData(size.width, size.height);
    const pixels = new Uint32Array(grey.data.buffer), scale = 255 / width, one = new Uint8ClampedArray(1);
    for (let i = 0; i < values.length; i++) {
      one[0] = Math.fround((values[i] - low) * scale);
      pixels[i] = 0xff000000 | (one[0] * 0x010101);
    }
    return grey;
  }

  function paint() {
    const size = item();
    native.width = size.width;
    native.height = size.height;
    native.getContext("2d").putImageData(toGrey(images[view.index], view.level - view.width / 2, view.width, size), 0, 0);
    draw();
    tell();
  }

  // Where the slice lies on the canvas, in CSS pixels.
  function place() {
    const size = item(), box = { width: canvas.clientWidth, height: canvas.clientHeight - (size.mark ? STRIP : 0) };
    const [wide, high] = [size.width * pixelX(size), size.height * pixelY(size)];
    const scale = Math.min((box.width - 2 * MARGIN) / wide, (box.height - 2 * MARGIN) / high) * view.zoom;
    return {
      left: box.width / 2 + view.x - (wide * scale) / 2, top: box.height / 2 + view.y - (high * scale) / 2,
      width: wide * scale, height: high * scale, box,
    };
  }

  function draw() {
    const ratio = window.devicePixelRatio || 1;
    canvas.width = Math.round(canvas.clientWidth * ratio);
    canvas.height = Math.round(canvas.clientHeight * ratio);
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.fillStyle = "#000";
    pen.fillRect(0, 0, canvas.clientWidth, canvas.clientHeight);
    const at = place();
    pen.imageSmoothingEnabled = view.smooth;
    pen.imageSmoothingQuality = "high";
    pen.drawImage(native, at.left, at.top, at.width, at.height);
    drawLetters(at.box);
    drawMark(at.box);
  }

  function drawLetters(box) {
    if (!item().oriented) return;
    pen.font = "600 13px system-ui, sans-serif";
    pen.textAlign = "center";
    pen.textBaseline = "middle";
    pen.lineWidth = 3;
    pen.strokeStyle = "#000";
    pen.fillStyle = "#8fd3ff";
    const letters = { R: [11, box.height / 2], L: [box.width - 11, box.height / 2], A: [box.width / 2, 11], P: [box.width / 2, box.height - 11] };
    for (const [letter, [x, y]] of Object.entries(letters)) {
      pen.strokeText(letter, x, y);
      pen.fillText(letter, x, y);
    }
  }

  // In the picture, so that a copy of it says so, too.
  function drawMark(box) {
    if (!item().mark) return;
    pen.fillStyle = "#181818";
    pen.fillRect(0, box.height, box.width, STRIP);
    pen.font = "12px system-ui, sans-serif";
    pen.textAlign = "center";
    pen.textBaseline = "middle";
    pen.fillStyle = "#fff";
    pen.fillText(item().mark, box.width / 2, box.height + STRIP / 2 + 1);
  }

  function tell() {
    for (const name of ["width", "level"]) {
      part(name).value = view[name];
      part(`${name}-number`).value = Number(view[name].toPrecision(4));
    }
    part("label").textContent = `${item().label} (${view.index + 1} of ${images.length})`;
    part("precision").textContent = item().precision;
    part("smooth").setAttribute("aria-pressed", view.smooth);
    part("move").setAttribute("aria-pressed", view.move);
    Object.assign(root.dataset, { index: view.index, width: view.width, level: view.level, zoom: view.zoom });
    root.querySelectorAll("[data-thumb]").forEach((thumb, i) => thumb.setAttribute("aria-pressed", i === view.index));
  }

  function choose(index) {
    view.index = Math.max(0, Math.min(images.length - 1, index));
    const strip = part("thumbs"), thumb = strip.children[view.index];
    strip.scrollLeft = thumb.offsetLeft - strip.clientWidth / 2 + thumb.clientWidth / 2;
    part("pixel").textContent = "";
    paint();
  }

  function setWindow(width, level) {
    if (!Number.isFinite(width) || !Number.isFinite(level)) return tell();
    view.width = Math.max(span / 1000, Math.min(width, 4 * span));
    view.level = Math.max(facts.full[0] - 2 * span, Math.min(level, facts.full[1] + 2 * span));
    paint();
  }

  const between = (low, high) => setWindow(high - low, (low + high) / 2);

  // The values below which shares of the slice lie; those of the background only if `least` is left out.
  function shares(least, ...wanted) {
    const sorted = images[view.index].filter((value) => Number.isFinite(value) && value > least).sort();
    return sorted.length ? wanted.map((share) => sorted[Math.round(share * (sorted.length - 1))]) : facts.full;
  }

  function zoomAt(factor, x, y) {
    const zoom = Math.max(0.5, Math.min(view.zoom * factor, 40)), change = zoom / view.zoom, { box } = place();
    view.x = x - box.width / 2 - (x - box.width / 2 - view.x) * change; // what is at x, y stays there
    view.y = y - box.height / 2 - (y - box.height / 2 - view.y) * change;
    view.zoom = zoom;
    draw();
    tell();
  }

  function move(x, y) {
    view.x += x;
    view.y += y;
    draw();
  }

  function reset() {
    Object.assign(view, { zoom: 1, x: 0, y: 0 });
    between(...facts.full);
  }

  // The value and the place under the pointer. The middle of the slice is at 0, 0.
  function read(x, y) {
    const at = place(), size = item();
    const column = Math.floor(((x - at.left) / at.width) * size.width);
    const row = Math.floor(((y - at.top) / at.height) * size.height);
    if (column < 0 || row < 0 || column >= size.width || row >= size.height) return (part("pixel").textContent = "");
    const value = images[view.index][row * size.width + column];
    const right = ((size.width - 1) / 2 - column) * pixelX(size), front = ((size.height - 1) / 2 - row) * pixelY(size);
    const unit = size.mm ? "mm" : "pixels";
    const where = size.oriented
      ? `${right < 0 ? "L" : "R"} ${Math.abs(right).toFixed(1)} ${unit}, ${front < 0 ? "P" : "A"} ${Math.abs(front).toFixed(1)} ${unit}`
      : `column ${column}, row ${row}`;
    part("pixel").textContent = `${Number.isFinite(value) ? Number(value.toPrecision(5)) : "not a number"} at ${where}`;
  }

  // One finger or button changes the window, or moves the slice; two fingers move and zoom.
  const fingers = new Map();
  const spot = (event) => {
    const box = canvas.getBoundingClientRect();
    return { x: event.clientX - box.left, y: event.clientY - box.top };
  };

  function pinch(id, now) {
    const before = fingers.get(id), [other] = [...fingers].filter(([key]) => key !== id).map(([, at]) => at);
    const apart = (at) => Math.hypot(at.x - other.x, at.y - other.y) || 1;
    view.x += (now.x - before.x) / 2;
    view.y += (now.y - before.y) / 2;
    zoomAt(apart(now) / apart(before), (now.x + other.x) / 2, (now.y + other.y) / 2);
  }

  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    fingers.set(event.pointerId, spot(event));
  });
  canvas.addEventListener("pointermove", (event) => {
    const now = spot(event), before = fingers.get(event.pointerId);
    read(now.x, now.y);
    if (!before) return;
    const [dx, dy] = [now.x - before.x, now.y - before.y];
    if (fingers.size > 1) {
      pinch(event.pointerId, now);
    } else if (view.move !== event.shiftKey) {
      move(dx, dy);
    } else {
      setWindow(view.width + (dx / canvas.clientWidth) * span, view.level + (dy / canvas.clientHeight) * span);
    }
    fingers.set(event.pointerId, now);
  });
  for (const name of ["pointerup", "pointercancel"]) {
    canvas.addEventListener(name, (event) => fingers.delete(event.pointerId));
  }
  canvas.addEventListener("pointerleave", () => (part("pixel").textContent = ""));
  canvas.addEventListener("dblclick", reset);
  canvas.addEventListener("wheel", (event) => {
    if (document.activeElement !== canvas && !event.ctrlKey) return; // else nobody could scroll past it
    event.preventDefault();
    const at = spot(event);
    zoomAt(Math.exp(-event.deltaY / 400), at.x, at.y);
  }, { passive: false });

  const middle = (factor) => zoomAt(factor, canvas.clientWidth / 2, place().box.height / 2);
  const KEYS = {
    ArrowLeft: () => choose(view.index - 1), ArrowRight: () => choose(view.index + 1),
    Home: () => choose(0), End: () => choose(images.length - 1),
    ArrowUp: () => setWindow(view.width, view.level - span / 50), ArrowDown: () => setWindow(view.width, view.level + span / 50),
    "+": () => middle(1.25), "=": () => middle(1.25), "-": () => middle(0.8), 0: reset,
  };
  const MOVES = { ArrowLeft: [-20, 0], ArrowRight: [20, 0], ArrowUp: [0, -20], ArrowDown: [0, 20] }; // with Shift
  canvas.addEventListener("keydown", (event) => {
    if (!KEYS[event.key] || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    if (event.shiftKey && MOVES[event.key]) {
      move(...MOVES[event.key]);
    } else {
      KEYS[event.key]();
    }
  });

  const on = (name, event, act) => part(name).addEventListener(event, act);
  on("before", "click", () => choose(view.index - 1));
  on("after", "click", () => choose(view.index + 1));
  on("full", "click", () => between(...facts.full));
  on("auto", "click", () => between(...shares(-Infinity, 0.005, 0.995)));
  on("brain", "click", () => between(...shares(facts.full[0] + span / 10, 0.02, 0.98))); // without the background
  on("smooth", "click", () => { view.smooth = !view.smooth; draw(); tell(); });
  on("move", "click", () => { view.move = !view.move; tell(); });
  on("reset", "click", reset);
  for (const suffix of ["", "-number"]) {
    const event = suffix ? "change" : "input";
    on(`width${suffix}`, event, (change) => setWindow(change.target.valueAsNumber, view.level));
    on(`level${suffix}`, event, (change) => setWindow(view.width, change.target.valueAsNumber));
  }

  function addThumb(label, index) {
    const button = document.createElement("button"), small = document.createElement("canvas");
    const size = facts.images[index];
    Object.assign(button, { type: "button", title: label, onclick: () => choose(index) });
    button.dataset.thumb = index;
    button.setAttribute("aria-label", label);
    const grey = toGrey(images[index], facts.full[0], span, size), whole = document.createElement("canvas");
    Object.assign(whole, { width: size.width, height: size.height });
    whole.getContext("2d").putImageData(grey, 0, 0);
    small.width = small.height = 104;
    const scale = 104 / Math.max(size.width, size.height);
    const paint = small.getContext("2d");
    paint.imageSmoothingQuality = "high";
    paint.drawImage(whole, 52 - (size.width * scale) / 2, 52 - (size.height * scale) / 2, size.width * scale, size.height * scale);
    button.append(small);
    part("thumbs").append(button);
  }

  async function start() {
    if (typeof DecompressionStream === "undefined") {
      throw new Error("this browser cannot unpack the values: use one of 2023 or later");
    }
    images = await Promise.all(facts.images.map(decode));
    facts.images.forEach((each, index) => addThumb(each.label, index));
    for (const [name, low, high] of [["width", span / 1000, 2 * span], ["level", facts.full[0] - span / 2, facts.full[1] + span / 2]]) {
      Object.assign(part(name), { min: low, max: high, step: span / 1000 });
    }
    part("thumbs").hidden = images.length < 2;
    part("turn").hidden = images.length < 2;
    between(...facts.full);
    new ResizeObserver(draw).observe(canvas);
    for (const each of controls) each.inert = false;
    root.dataset.ready = "yes";
    part("words").hidden = true;
  }
  start().catch((error) => { part("words").textContent = `No viewer: ${error.message}.`; });
})();

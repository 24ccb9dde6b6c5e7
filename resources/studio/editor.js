// The panels that correct a frame (tools, canvas, palette, undo, preview of the effect) and list the references.
(() => {
  const { call, createElement, currentShot, emit, escape, filmstrip, goTo, on, press, report, state, step } = window.studio;
  const isColor = (value) => /^#[0-9a-f]{6}$/i.test(value);

  // Return the color "#rrggbb" of a pixel of a canvas context.
  const pixelColor = (context, x, y) => "#" + [...context.getImageData(x, y, 1, 1).data.slice(0, 3)]
    .map((value) => value.toString(16).padStart(2, "0")).join("");

  const TOOLS = [["fill", "Fill", "f", "Color the region that you click"],
    ["like", "All like this", "a", "Color all parts of the frame that look like the one that you click"],
    ["grow", "Grow", "g", "Add the region that you click to the last fill"],
    ["cut", "Cut", "x", "Divide the last fill by a line"], ["brush", "Brush", "b", "Color along a stroke"],
    ["erase", "Erase", "e", "Restore the predicted colors along a stroke"], ["pick", "Pick", "i", "Take the color of a pixel"]];
  const STROKES = ["cut", "brush", "erase"];  // tools that follow the pointer
  const FILLS = ["fill", "like"];  // tools that are previewed where the pointer rests
  const REST = 120, IDLE = 1500;  // milliseconds without movement before a preview, and without edits before the effect
  const MAX_HISTORY = 40;  // pictures kept for undoing without delay

  window.studio.editor = ({ element, server, upload }) => {
    const root = element.querySelector(".editor");
    const strip = createElement("<div></div>");
    filmstrip(strip);
    const body = createElement(`<div class="columns"><div class="canvas">
      <div class="row" role="toolbar" aria-label="Tools">${TOOLS.map(([name, label, key, title]) =>
        `<button data-tool="${name}" aria-pressed="${name === "fill"}" title="${title} (${key})">${label}</button>`).join("")}
        <span class="grow"></span>
        <button data-edit="undo" title="Undo (Ctrl+Z)">Undo</button><button data-edit="redo" title="Redo (Ctrl+Y)">Redo</button>
        <button data-edit="reset">Reset</button></div>
      <div class="stage"><div class="sheet"><canvas tabindex="0" aria-label="The frame; arrow keys move the cursor, Enter clicks"></canvas>
        <img class="over preview" alt="" hidden><div class="proposals" role="group" aria-label="Proposed colors" hidden></div>
        <svg class="over cursor" hidden><g stroke-width="1.5"><path stroke="#fff" d="M-9 0H9M0 -9V9"/></g></svg></div></div>
      <div class="row"><button data-step="-1" aria-label="Previous frame">&#9664;</button>
        <div class="grow"><input class="time" type="range" aria-label="Frame of the shot"></div>
        <button data-step="1" aria-label="Next frame">&#9654;</button><output class="quiet" style="min-width:11em"></output></div>
      <div class="row"><button class="primary" data-action="add" title="Add as reference (Ctrl+Enter)">Add as reference</button>
        <select class="scope" aria-label="Shots that the reference is for"><option value="">for the whole film</option>
        <option value="similar_shots">for similar shots</option><option value="only_this_shot">only for this shot</option></select>
        <span class="quiet effect grow" aria-live="polite"></span>
      <details><summary class="quiet">Use another program</summary><div class="row">
        <button data-action="download">Download the grayscale frame</button>
        <label class="quiet">and upload it in color: <input class="upload" type="file" accept="image/*"></label></div></details></div>
      </div><div class="colors">
      <div class="row"><input type="color" value="#c83c32" aria-label="Color"><input class="hex" type="text" value="#c83c32"
        size="8" maxlength="7" aria-label="Hexadecimal color"><label class="quiet size brush" hidden>brush
        <input class="radius" type="range" min="1" max="60" value="10" aria-label="Brush radius"></label><label
        class="quiet size like" hidden>likeness (&minus; +)
        <input class="tolerance" type="range" min="0.1" max="0.9" step="0.05" value="0.4" aria-label="Tolerance"></label></div>
      <h3>Palette</h3><div class="swatches"></div>
      <h3>Pick from a remembered frame</h3><div class="remembered"></div>
      </div></div>`);
    const empty = createElement('<div class="empty">The film is not colored yet.</div>');
    root.append(strip, body, empty);
    const $ = (selector) => body.querySelector(selector);
    const [canvas, cursor, hex, picker, radius, tolerance, preview, proposals, time, addButton] = ["canvas", ".cursor",
      ".hex", 'input[type="color"]', ".radius", ".tolerance", ".preview", ".proposals", ".time", '[data-action="add"]'].map($);
    const context = canvas.getContext("2d", { willReadFrequently: true });
    let tool = "fill", stroke = null, cursorAt = { x: 0, y: 0 }, openKey = "", size = [1, 1], shown = {};
    let queue = Promise.resolve(), pending = 0, unknown = 0, paletteKey = "", swatches = "";
    let past = [], future = [];  // answers of the server before and after the shown one, for undo and redo
    let at = null, proposed = Promise.resolve([]), restTimer = 0, effectTimer = 0;  // at: point of the preview

    const setColor = (value) => {
      hex.value = picker.value = value.toLowerCase();
      press(body.querySelectorAll(".swatches button"), (data) => data.color === hex.value);
    };
    const setTool = (name) => {
      tool = name;
      press(body.querySelectorAll("[data-tool]"), (data) => data.tool === name);
      canvas.style.cursor = name === "pick" ? "copy" : "crosshair";
      $(".brush").hidden = !["brush", "erase"].includes(name);
      $(".like").hidden = name !== "like";
      if (at) showPreview(at);
    };
    function hidePreview() {
      clearTimeout(restTimer);
      at = null;
      preview.hidden = proposals.hidden = true;
      proposed = Promise.resolve([]);
    }
    // Show what a click at a point would fill, and beside it the colors that are proposed for it.
    function showPreview(point) {
      hidePreview();
      if (!FILLS.includes(tool) || shown.frame !== state.frame) return;
      at = point;
      proposed = call(server, "preview_fill", { frame: state.frame, tool, point, tolerance: Number(tolerance.value) }).then((answer) => {
        if (!answer || at !== point) return [];
        preview.src = answer.mask;
        proposals.innerHTML = answer.colors.map((color, index) => `<button data-proposal="${index}" style="background:${color}"
          title="${color} (${index + 1})" aria-label="Proposed color ${index + 1}: ${color}"><b>${index + 1}</b></button>`).join("");
        preview.hidden = proposals.hidden = false;
        const box = canvas.getBoundingClientRect();
        const place = (share, side, own) => Math.max(0, share * side + 16 + own > side ? share * side - 16 - own : share * side + 16);
        proposals.style.left = `${place(point[0] / size[0], box.width, proposals.offsetWidth)}px`;
        proposals.style.top = `${place(point[1] / size[1], box.height, proposals.offsetHeight)}px`;
        root.dataset.previewed = point.map(Math.round).join();
        return answer.colors;
      });
    }
    // Fill at the point of the preview with a proposed color.
    async function accept(index) {
      const point = at, color = (await proposed)[index];
      if (!color || at !== point) return;
      setColor(color);
      apply([point]);
    }
    async function show(answer) {
      shown = answer;
      size = [answer.width, answer.height];
      const image = new Image();
      image.src = answer.picture;
      await image.decode();
      if (shown !== answer) return;
      if (canvas.width !== image.width || canvas.height !== image.height) {
        [canvas.width, canvas.height] = [image.width, image.height];
        root.style.setProperty("--aspect", image.width / image.height);
      }
      context.drawImage(image, 0, 0);
      $('[data-edit="undo"]').disabled = $('[data-edit="reset"]').disabled = !answer.undo;
      $('[data-edit="redo"]').disabled = !answer.redo;
      addButton.disabled = !answer.changed;
      root.dataset.shown = `${answer.frame}`;
      root.dataset.edits = `${answer.edits}`;
      $(".effect").textContent = "";
      clearTimeout(effectTimer);
      effectTimer = setTimeout(showEffect, IDLE);
    }
    async function showEffect() {
      const { changed, frame, edits } = shown;
      $(".effect").textContent = changed ? "Finding the affected shots\u2026" : "";
      const answer = changed && await call(server, "preview_effect", { frame, scope: $(".scope").value });
      if (answer && shown.frame === frame && shown.edits === edits) $(".effect").textContent = answer.message;
    }
    // Make one call at a time, so that quick clicks are applied in order, and show the last answer.
    // `isShown`: the page has shown the expected answer already.
    function send(name, data, onAnswer, isShown) {
      pending += 1;
      unknown += isShown ? 0 : 1;
      queue = queue.then(() => call(server, name, data)).then((answer) => {
        pending -= 1;
        unknown -= isShown ? 0 : 1;
        if (!answer) return isShown ? open(true) : null;
        if (isShown && pending) return null;
        onAnswer?.();
        shown = answer;
        return pending ? null : show(answer);
      });
      return queue;
    }
    // Undo and redo show the picture of that state at once if it is known.
    function edit(data) {
      hidePreview();
      const [from, to, opposite] = { undo: [past, future, "redo"], redo: [future, past, "undo"] }[data.tool] || [];
      if (!from) send("edit_frame", { frame: state.frame, ...data }, () => {
        past = [...past, shown].slice(-MAX_HISTORY);
        future = [];
      });
      else if (unknown || shown[data.tool]) {
        const known = !unknown && from.pop();
        if (known) { to.push(shown); show({ ...known, [opposite]: true }); }
        send("edit_frame", { frame: state.frame, ...data }, known ? null : () => { [past, future] = [[], []]; }, known);
      }
    }
    function open(force) {
      const shot = currentShot(), ready = shot && state.colored, key = `${state.frame}/${state.version}`;
      body.hidden = !ready;
      empty.hidden = Boolean(ready);
      if (!ready || !root.offsetParent) return;
      Object.assign(time, { min: shot.start, max: shot.end - 1, value: state.frame });
      $("output").textContent = `shot ${state.shot + 1}, frame ${state.frame}`;
      if (!force && openKey === key) return;
      openKey = key;
      [past, future] = [[], []];
      hidePreview();
      send("open_frame", { frame: state.frame });
    }
    const pointOf = (event) => {
      const box = canvas.getBoundingClientRect();
      return [(event.clientX - box.left) / box.width * size[0], (event.clientY - box.top) / box.height * size[1]];
    };
    function apply(points) {
      if (tool === "pick") {
        const [x, y] = points[0];
        setColor(pixelColor(context, Math.round(x / size[0] * canvas.width), Math.round(y / size[1] * canvas.height)));
        setTool("fill");
      } else if (isColor(hex.value)) edit({ tool, points, color: hex.value, radius: Number(radius.value), tolerance: Number(tolerance.value) });
      else report("the color is not # and six hexadecimal digits, such as #c83c32");
    }
    canvas.addEventListener("pointerdown", (event) => {
      clearTimeout(restTimer);
      canvas.setPointerCapture(event.pointerId);
      stroke = [pointOf(event)];
    });
    canvas.addEventListener("pointermove", (event) => {
      clearTimeout(restTimer);
      if (!stroke && event.pointerType === "mouse") restTimer = setTimeout(() => showPreview(pointOf(event)), REST);
      if (!stroke || !STROKES.includes(tool)) return;
      const to = pointOf(event), from = stroke.at(-1), scale = canvas.width / size[0];
      context.strokeStyle = tool === "brush" ? hex.value : "#fff";
      context.lineWidth = tool === "cut" ? 2 : Math.max(1, 2 * radius.value * scale);
      context.lineCap = "round";
      context.beginPath();
      context.moveTo(from[0] * scale, from[1] * scale);
      context.lineTo(to[0] * scale, to[1] * scale);
      context.stroke();
      stroke.push(to);
    });
    canvas.addEventListener("pointerup", () => {
      if (!stroke) return;
      const points = STROKES.includes(tool) ? stroke : stroke.slice(0, 1);
      stroke = null;
      apply(points);
    });
    canvas.addEventListener("pointercancel", () => { stroke = null; open(true); });
    canvas.addEventListener("pointerleave", () => clearTimeout(restTimer));
    $(".stage").addEventListener("pointerleave", hidePreview);
    tolerance.addEventListener("input", () => at && showPreview(at));
    canvas.addEventListener("keydown", (event) => {
      const by = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
      if (by) {
        const distance = size[0] / (event.shiftKey ? 20 : 160);
        const [x, y] = [cursorAt.x, cursorAt.y].map((value, axis) =>
          Math.max(0, Math.min(size[axis] - 1, value + by[axis] * distance)));
        cursorAt = { x, y };
        cursor.removeAttribute("hidden");
        const box = cursor.getBoundingClientRect();
        cursor.firstElementChild.setAttribute("transform", `translate(${x / size[0] * box.width} ${y / size[1] * box.height})`);
        clearTimeout(restTimer);
        restTimer = setTimeout(() => showPreview([x, y]), REST);
        event.preventDefault();
      } else if (event.key === "Enter" && !event.ctrlKey) { apply([[cursorAt.x, cursorAt.y]]); event.preventDefault(); }
    });
    const actions = {
      async add() {
        if (!shown.changed) return;
        addButton.disabled = true;
        if (await call(server, "add_reference", { frame: shown.frame, scope: $(".scope").value })) emit("poll");
      },
      async download() {
        const frame = state.frame, answer = await call(server, "download_grayscale", { frame });
        if (!answer) return;
        const link = document.createElement("a");
        [link.href, link.download] = [answer.picture, `frame_${String(frame).padStart(6, "0")}.png`];
        link.click();
      },
    };
    body.addEventListener("click", (event) => {
      const data = event.target.closest("button")?.dataset;
      if (!data) return;
      if (data.tool) setTool(data.tool);
      if (data.proposal) accept(Number(data.proposal));
      if (data.color) setColor(data.color);
      if (data.step) step(Number(data.step));
      if (data.edit) edit({ tool: data.edit });
      if (data.action) actions[data.action]();
    });
    $(".upload").addEventListener("change", async (event) => {
      const [file] = event.target.files, frame = state.frame;
      if (!file) return;
      const uploaded = await upload(file).catch(() => null);
      event.target.value = "";
      if (!uploaded) report("the upload failed; the picture may be too large");
      else if (await call(server, "add_uploaded_reference", { frame, path: uploaded.path, scope: $(".scope").value })) emit("poll");
    });
    $(".scope").addEventListener("change", showEffect);
    time.addEventListener("input", () => goTo(state.shot, Number(time.value)));
    picker.addEventListener("input", () => setColor(picker.value));
    hex.addEventListener("change", () => { if (isColor(hex.value)) setColor(hex.value); });
    document.addEventListener("keydown", (event) => {
      if (!root.offsetParent || /TEXTAREA|SELECT/.test(event.target.tagName) || /text|number/.test(event.target.type)) return;
      const key = event.key.toLowerCase(), control = event.ctrlKey || event.metaKey;
      const shortcut = !control && !event.altKey && TOOLS.find(([, , letter]) => letter === key);
      if (shortcut) setTool(shortcut[0]);
      else if (!control && /^[1-9]$/.test(key)) accept(Number(key) - 1);
      else if (!control && "-+".includes(key)) {
        const slider = tool === "like" ? tolerance : radius;
        slider.value = Number(slider.value) + (key === "+" ? 1 : -1) * Number(slider.step || 1);
        if (at) showPreview(at);
      } else if (!control && key === "h") hex.select();
      else if (key === "escape") hidePreview();
      else if (control && key === "z") edit({ tool: event.shiftKey ? "redo" : "undo" });
      else if (control && key === "y") edit({ tool: "redo" });
      else if (control && key === "enter") actions.add();
      else return;
      event.preventDefault();
    });
    async function showPalette() {
      const palette = await call(server, "show_palette"), frames = await call(server, "remembered");
      if (!palette || !frames) return;
      const html = palette.characters.map(({ name, colors }) => (palette.characters.length > 1 ? `<span class="quiet">${escape(name)}</span>` : "")
        + colors.map((each) => `<button data-color="${each.color}" style="background:${each.color}" aria-pressed="false"
          aria-label="${each.color}" title="${each.color} ${escape(name)}: ${escape(each.name)}"></button>`).join("")).join("");
      if (html !== swatches) $(".swatches").innerHTML = swatches = html;
      $(".remembered").innerHTML = frames.frames.map(({ name, picture }) =>
        `<button class="source" title="${escape(name)}" aria-label="Pick from ${escape(name)}"><img src="${picture}" alt=""></button>`).join("");
    }
    $(".remembered").addEventListener("click", (event) => {
      const image = event.target.closest("button")?.querySelector("img");
      if (!image) return;
      const box = image.getBoundingClientRect();  // a key press has no position, so it picks the center
      const [x, y] = event.detail ? [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height] : [0.5, 0.5];
      const copy = document.createElement("canvas");
      [copy.width, copy.height] = [image.naturalWidth, image.naturalHeight];
      const source = copy.getContext("2d");
      source.drawImage(image, 0, 0);
      setColor(pixelColor(source, Math.floor(x * (copy.width - 1)), Math.floor(y * (copy.height - 1))));
    });
    const update = () => {
      const key = `${state.colored}/${state.version}`;
      if (root.offsetParent && state.colored && paletteKey !== key) { paletteKey = key; showPalette(); }
      open();
    };
    on("moved", update);
    on("status", update);
    new ResizeObserver(update).observe(root);
    update();
  };

  window.studio.references = ({ element, server }) => {
    const root = element.querySelector(".references");
    root.className = "studio";
    async function draw() {
      const answer = await call(server, "list_references");
      if (!answer) return;
      root.innerHTML = "<h3>References</h3>" + (answer.references.length
        ? `<div class="references">` + answer.references.map(({ file, frame, picture }) =>
          `<figure><img src="${picture}" alt="frame ${frame} in color"><div class="row">
           <span class="grow quiet"><span>frame ${frame}</span> ${file.includes("/") ? escape(file.split("/")[0].replaceAll("_", " ")) : ""}</span><button data-file="${escape(file)}">Remove</button></div></figure>`).join("") + "</div>"
        : `<p class="quiet">No references yet.</p>`);
    }
    root.addEventListener("click", async (event) => {
      const { file } = event.target.dataset;
      if (!file) return;
      event.target.disabled = true;
      await call(server, "remove_reference", { file });
      emit("poll");
      draw();
    });
    on("shots", draw);
    draw();
  };
})();

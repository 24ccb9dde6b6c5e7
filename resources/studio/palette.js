// The panels that show and edit the palette of the characters, and list the character sheets.
(() => {
  const { call, createElement, currentShot, emit, escape, filmstrip, goTo, on, report, state, step } = window.studio;
  const isColor = (value) => /^#[0-9a-f]{6}$/i.test(value);
  const LOCK = '<svg viewBox="0 0 10 12" width="12" aria-hidden="true"><path d="M1 5h8v6H1zM3 5V3.5a2 2 0 0 1 4 0V5" fill="#fff" stroke="#000"/></svg>';
  const REST = 200;  // milliseconds without another choice of a color before its preview

  window.studio.palette = ({ element, server, upload }) => {
    const root = element.querySelector(".palette");
    filmstrip(root);
    const body = createElement(`<div class="columns wide"><div class="canvas">
      <div class="stage"><div class="sheet"><img class="frame" alt="the colored frame; click a pixel to select its color"></div></div>
      <div class="row"><button data-step="-1" aria-label="Previous frame">&#9664;</button>
        <div class="grow"><input class="time" type="range" aria-label="Frame of the shot"></div>
        <button data-step="1" aria-label="Next frame">&#9654;</button><output class="quiet" style="min-width:11em"></output></div>
      </div><div>
      <div class="row"><select class="scope" aria-label="Shots that the palette is for"><option value="">for the whole film</option>
        <option value="similar_shots">for similar shots</option><option value="only_this_shot">only for this shot</option></select>
        <span class="grow"></span><button data-action="undo" title="Undo the last change of the palette (Ctrl+Z)">Undo</button>
        <button data-action="import">Import</button>
        <select class="export" aria-label="Export the palette"><option value="">Export</option><option>.ini</option>
          <option>.gpl</option><option>.ase</option></select>
        <input class="file" type="file" accept=".ini,.gpl,.ase" hidden></div>
      <p class="quiet message" aria-live="polite">Select a color, here or in the frame.</p>
      <fieldset class="chosen" disabled><div class="row"><i class="dot"></i>
        <label class="quiet grow">Name <input class="name" type="text" maxlength="56"></label>
        <label class="quiet grow">Character <input class="owner" type="text" maxlength="56" list="characters"></label>
        <datalist id="characters"></datalist></div>
      <div class="row"><button data-action="lock" aria-pressed="false" title="Give all pixels of this color exactly this color (l)">Lock</button>
        <input type="color" aria-label="Replacement"><input class="hex" type="text" size="8" maxlength="7"
          aria-label="Hexadecimal replacement"><button data-action="exchange" disabled>Exchange</button>
        <button data-action="restore">Restore</button></div></fieldset>
      <div class="groups"></div></div></div>`);
    const empty = createElement('<div class="empty">The palette is shown once there is a checkpoint.</div>');
    root.append(body, empty);
    const $ = (selector) => body.querySelector(selector);
    const [image, chosen, name, owner, hex, picker, file, time] = [".frame", ".chosen", ".name", ".owner", ".hex",
      'input[type="color"]', ".file", ".time"].map($);
    const shots = () => ({ frame: state.frame, scope: $(".scope").value });
    let palette = { characters: [], undo: false }, selected = null, key = "", drawn = "", groups = "", timer = 0;
    let changing = 0, requests = 0;  // changes in progress, after which the palette is requested again

    const find = (ids) => ids && palette.characters.find((each) => each.name === ids.character)?.colors.find((each) => each.name === ids.name);
    const swatch = ({ color, old }) => color === old ? color : `linear-gradient(135deg, ${old} 50%, ${color} 50%)`;
    function select(ids, replacement) {
      selected = find(ids) ? ids : null;
      const color = find(selected);
      chosen.disabled = !color;
      if (document.activeElement !== name) name.value = selected?.name ?? "";
      if (document.activeElement !== owner) owner.value = selected?.character ?? "";
      name.disabled = owner.disabled = Boolean($(".scope").value);
      $(".dot").style.background = color ? swatch(color) : "";
      $('[data-action="lock"]').setAttribute("aria-pressed", Boolean(color?.locked));
      $('[data-action="lock"]').disabled = !color || color.color !== color.old;
      $('[data-action="restore"]').disabled = !color || color.color === color.old;
      $(".groups").querySelectorAll("[data-name]").forEach((button) => {
        button.setAttribute("aria-pressed", button.dataset.name === selected?.name && button.dataset.character === selected?.character);
      });
      setColor(replacement ?? color?.color ?? "#808080");
    }
    // Show a color as the replacement of the selected one, and the frame with it.
    function setColor(value) {
      hex.value = value.toLowerCase();
      if (isColor(value)) picker.value = hex.value;
      const isNew = isColor(value) && selected && hex.value !== find(selected).color;
      $('[data-action="exchange"]').disabled = !isNew;
      clearTimeout(timer);
      timer = setTimeout(showFrame, isNew ? REST : 0);
    }
    async function showFrame() {
      if (!root.offsetParent || !state.shots.length) return;
      const frame = state.frame, color = hex.value, now = selected;
      const isNew = now && state.colored && isColor(color) && color !== find(now)?.color;
      const wanted = `${frame}/${state.version}/${$(".scope").value}/${isNew ? `${now.character}/${now.name}/${color}` : ""}`;
      if (wanted === drawn) return;
      drawn = wanted;
      const answer = isNew ? await call(server, "preview_color", { ...shots(), ...now, color })
        : await call(server, "frame", { index: frame, width: 960, kinds: [state.colored ? "colored" : "gray"] });
      if (!answer || drawn !== wanted) return;
      image.src = answer.picture ?? answer.colored ?? answer.gray;
      await image.decode().catch(() => {});
      root.style.setProperty("--aspect", image.naturalWidth / Math.max(1, image.naturalHeight));
      root.dataset.shown = wanted;
    }
    async function showPalette() {
      const request = ++requests, answer = await call(server, "show_palette", shots());
      if (!answer || changing || request !== requests) return;  // it may not have the selected color yet, or not any more
      const before = find(selected)?.color, replacement = hex.value;
      palette = answer;
      body.hidden = !palette.characters.length;
      empty.hidden = !body.hidden;
      $('[data-action="undo"]').disabled = !palette.undo;
      $("datalist").innerHTML = palette.characters.map((each) => `<option value="${escape(each.name)}">`).join("");
      const html = palette.characters.map((each) => `<div class="group"><div class="row">
        ${each.picture ? `<img src="${each.picture}" alt="">` : ""}
        <input class="title" type="text" maxlength="56" value="${escape(each.name)}" data-character="${escape(each.name)}"
          aria-label="Name of the character ${escape(each.name)}"></div><div class="swatches">${each.colors.map((color) =>
        `<button data-character="${escape(each.name)}" data-name="${escape(color.name)}" style="background:${swatch(color)}" aria-pressed="false"
          title="${escape(color.name)} ${color.old}${color.color === color.old ? color.locked ? ", locked" : "" : ` \u2192 ${color.color}`}"
          aria-label="${escape(color.name)} of ${escape(each.name)}">${color.locked ? LOCK : ""}</button>`).join("")}</div></div>`).join("");
      if (html !== groups) $(".groups").innerHTML = groups = html;
      root.dataset.version = `${state.version}`;
      select(selected, before && find(selected)?.color === before ? replacement : undefined);  // do not disturb the user
    }
    // Call a function that changes the palette, and show the result.
    async function change(called, data, then = selected) {
      changing++;
      const answer = await call(server, called, data).finally(() => changing--);
      if (!answer) { groups = ""; await showPalette(); return; }
      selected = then;
      $(".message").textContent = answer.message ?? "";
      emit("poll");
      await showPalette();
    }
    async function edit(changes) {
      const color = find(selected);
      if (!color) return;
      const edited = { ...selected, color: color.color, locked: color.locked, ...changes };
      await change("edit_color", { ...selected, edited, ...shots() }, { character: edited.character.trim(), name: edited.name.trim() });
    }
    const actions = {
      undo: () => change("undo_palette", { frame: state.frame }),
      import: () => file.click(),
      lock: () => edit({ locked: !find(selected).locked }),
      restore: () => edit({ color: find(selected).old, locked: false }),
      exchange: () => isColor(hex.value) ? edit({ color: hex.value })
        : report("the color is not # and six hexadecimal digits, such as #c83c32"),
    };
    body.addEventListener("click", (event) => {
      const data = event.target.closest("button")?.dataset;
      if (!data) return;
      if (data.step) step(Number(data.step));
      if (data.name) select({ character: data.character, name: data.name });
      if (data.action) actions[data.action]();
    });
    body.addEventListener("change", async (event) => {
      const { target } = event;
      if (target === name) edit({ name: name.value });
      if (target === owner) edit({ character: owner.value });
      if (target.className === "scope") update();
      if (target.className === "title") change("rename_character", { character: target.dataset.character, name: target.value });
      if (target === hex) { if (isColor(hex.value)) setColor(hex.value); else select(selected); }
      if (target.className === "export" && target.value) {
        const answer = await call(server, "export_palette", { suffix: target.value, ...shots() });
        target.value = "";
        if (!answer) return;
        const link = document.createElement("a");
        [link.href, link.download] = [answer.file, answer.name];
        link.click();
      }
    });
    file.addEventListener("change", async () => {
      const uploaded = await upload(file.files[0]).catch(() => null);
      file.value = "";
      if (uploaded) change("import_palette", { path: uploaded.path, ...shots() });
      else report("the upload failed; choose a palette file");
    });
    image.addEventListener("click", async (event) => {
      if (!state.colored) return;
      const box = image.getBoundingClientRect();
      const point = [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
      const answer = await call(server, "find_color", { ...shots(), point });
      if (answer) select(answer);
    });
    picker.addEventListener("input", () => setColor(picker.value));
    time.addEventListener("input", () => goTo(state.shot, Number(time.value)));
    document.addEventListener("keydown", (event) => {
      if (!root.offsetParent || /TEXTAREA|SELECT/.test(event.target.tagName) || /text|number/.test(event.target.type) || event.altKey) return;
      const key_ = event.key.toLowerCase(), control = event.ctrlKey || event.metaKey;
      if (control && key_ === "z") actions.undo();
      else if (!control && key_ === "l" && selected) $('[data-action="lock"]').click();
      else if (!control && key_ === "h" && selected) hex.select();
      else return;
      event.preventDefault();
    });
    const update = () => {
      const shot = currentShot();
      if (!root.offsetParent) return;
      if (shot) {
        Object.assign(time, { min: shot.start, max: shot.end - 1, value: state.frame });
        $("output").textContent = `shot ${state.shot + 1}, frame ${state.frame}`;
      }
      const scope = $(".scope").value, now = `${state.version}/${scope}/${scope && state.shot}`;
      if (key !== now) { key = now; showPalette(); }
      showFrame();
    };
    on("moved", update);
    on("finished", () => { drawn = ""; update(); });
    new ResizeObserver(update).observe(root);
    update();
  };

  window.studio.sheets = ({ element, server }) => {
    const root = element.querySelector(".sheets");
    async function draw() {
      const answer = await call(server, "list_characters");
      if (answer) root.innerHTML = answer.characters.map(({ name, count, picture }) => `<div class="row"><img src="${picture}" alt="">
        <span class="grow">${escape(name)} <span class="quiet">${count} picture${count > 1 ? "s" : ""}</span></span>
        <button data-character="${escape(name)}">Remove</button></div>`).join("");
    }
    root.addEventListener("click", async (event) => {
      const name = event.target.dataset.character;
      if (!name) return;
      event.target.disabled = true;
      await call(server, "remove_character", { name });
      emit("poll");
    });
    on("shots", draw);
    draw();
  };
})();

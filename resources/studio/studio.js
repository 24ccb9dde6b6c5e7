// The parts of the page that Gradio has not: filmstrip, viewer, status. Each gets its element and the functions of the
// desk (studio.py) that it may ask; a page has one desk, and the parts tell each other by events.
window.studio = (() => {
  const desk = new EventTarget();
  const at = { shots: [], colored: false, shot: 0, frame: 0, version: 0 };
  const wait = (ms) => new Promise((done) => setTimeout(done, ms));
  const tell = (name) => desk.dispatchEvent(new Event(name));
  const on = (name, act) => desk.addEventListener(name, act);
  let problem = "";

  async function ask(server, name, data = {}) {
    let answer;
    try {
      answer = await server[name](data);
    } catch (error) {
      answer = { error: "the studio does not answer; see whether its program still runs" };
    }
    if (answer && answer.error) {
      problem = answer.error;
      tell("problem");
      return null;
    }
    return answer;
  }

  function make(html) {
    const template = document.createElement("template");
    template.innerHTML = html.trim();
    return template.content.firstElementChild;
  }

  const text = (value) => String(value).replace(/[&<>"']/g, (c) => `&#${c.charCodeAt(0)};`);

  function clock(seconds) {
    const whole = Math.floor(seconds);
    const tenth = Math.floor((seconds - whole) * 10);
    return `${Math.floor(whole / 60)}:${String(whole % 60).padStart(2, "0")}.${tenth}`;
  }

  function minutes(seconds) {
    if (seconds === null || seconds === undefined) return "";
    return seconds < 90 ? `about ${Math.max(1, seconds)} s left` : `about ${Math.round(seconds / 60)} minutes left`;
  }

  const current = () => at.shots[at.shot];

  function go(shot, frame) {
    if (!at.shots.length) return;
    at.shot = Math.max(0, Math.min(at.shots.length - 1, shot));
    const { start, end, middle } = current();
    at.frame = Math.max(start, Math.min(end - 1, frame === undefined ? middle : frame));
    tell("moved");
  }

  // What is being done, what went wrong, and when to look again.
  function status({ element, server }) {
    const root = element.querySelector(".status");
    const show = (now) => {
      const busy = now.running
        ? `<b>${text(now.title)}</b><span class="quiet">${text(now.note)}</span>
           <div class="track" role="progressbar" aria-valuenow="${Math.round(now.done * 100)}"
             aria-valuemin="0" aria-valuemax="100" aria-label="${text(now.title)}">
             <div style="width:${now.done * 100}%"></div></div>
           <span class="quiet">${Math.round(now.done * 100)} % ${minutes(now.left)}</span>
           <button data-act="stop">Stop</button>`
        : `<span>${now.film ? text(now.film) : "No film yet"}</span>
           <span class="quiet">${now.checkpoint ? "" : "no colors learned yet"}${now.stale ? "changed since it was colored" : ""}</span>
           ${now.stale ? '<button class="primary" data-act="color_again">Color the film</button>' : ""}`;
      const wrong = now.problem || problem;
      const html = `<div class="row">${busy}</div>` + (wrong ? `<div class="problem" role="alert">${text(wrong)}</div>` : "");
      if (root.dataset.html !== html) {
        root.dataset.html = html;
        root.innerHTML = html;
      }
    };
    root.addEventListener("click", (event) => {
      const act = event.target.dataset.act;
      if (act) { problem = ""; ask(server, act).then(once); }
    });
    let last = null;
    async function once() {
      const now = await ask(server, "status");
      if (!now) return;
      last = now;
      const fresh = current() && now.fresh.includes(current().start) && !(at.fresh || []).includes(current().start);
      Object.assign(at, { running: now.running, title: now.title, fresh: now.fresh });
      show(now);
      tell("status");
      if (fresh) tell("fresh");
      if (now.version !== at.version) {
        at.version = now.version;
        await refresh(server);
      }
    }
    on("problem", () => last && show(last));
    on("moved", () => { if (problem) { problem = ""; if (last) show(last); } });
    on("hurry", once);
    (async () => {
      while (document.body.contains(root)) {
        await once();
        await wait(at.running ? 700 : 1500);
      }
    })();
  }

  async function refresh(server) {
    const answer = await ask(server, "shots");
    if (!answer) return;
    const first = !at.shots.length;
    Object.assign(at, answer);
    if (at.shots.length) {
      const holds = at.shots.findIndex(({ start, end }) => at.frame >= start && at.frame < end);
      at.shot = Math.max(0, holds);
      if (first) at.frame = current().middle;
    }
    tell("shots");
    tell("moved");
  }

  // The filmstrip: buttons in one row, moved through by arrow keys.
  function strip(root) {
    let byNeed = false;
    const bar = make(`<div class="row bar"><div class="grow quiet"></div>
      <button data-order="time" aria-pressed="true">By time</button>
      <button data-order="next" aria-pressed="false">Color these next</button></div>`);
    const row = make('<div class="strip" role="listbox" aria-label="Shots of the film"></div>');
    root.append(bar, row);
    const draw = () => {
      const doubtful = at.shots.filter((shot) => shot.doubtful).length;
      bar.firstElementChild.textContent = at.shots.length
        ? `${at.shots.length} shots` + (at.colored ? `, ${doubtful} doubtful` : ", not colored yet") : "";
      bar.querySelectorAll("button").forEach((button) => {
        button.setAttribute("aria-pressed", (button.dataset.order === "next") === byNeed);
        button.disabled = button.dataset.order === "next" && !at.colored;
      });
      const order = at.shots.map((_, index) => index);
      if (byNeed) order.sort((a, b) => (at.shots[a].next || 1e9) - (at.shots[b].next || 1e9) || a - b);
      row.innerHTML = order.map((index) => {
        const shot = at.shots[index];
        const label = `Shot ${index + 1}, ${clock(shot.time)}` + (shot.doubtful ? ", doubtful" : "");
        const sure = shot.sure === null ? "" :
          `<span class="sure" title="${Math.round(shot.sure * 100)} % known"><i style="width:${shot.sure * 100}%"></i></span>`;
        return `<button class="shot${shot.doubtful ? " doubtful" : ""}" role="option" data-shot="${index}"
          aria-label="${label}" aria-selected="${index === at.shot}" tabindex="${index === at.shot ? 0 : -1}">
          <img src="${shot.picture}" alt="" loading="lazy">
          <span><b>${index + 1}</b>${shot.next ? `<em class="next">next ${shot.next}</em>` : ""}
          <em class="quiet">${clock(shot.time)}</em></span>${sure}</button>`;
      }).join("");
    };
    const mark = () => row.querySelectorAll(".shot").forEach((button) => {
      const chosen = Number(button.dataset.shot) === at.shot;
      button.setAttribute("aria-selected", chosen);
      button.tabIndex = chosen ? 0 : -1;
      if (chosen) {
        const left = button.offsetLeft - row.offsetLeft;
        if (left < row.scrollLeft || left + button.offsetWidth > row.scrollLeft + row.clientWidth) {
          row.scrollLeft = left - row.clientWidth / 2 + button.offsetWidth / 2;
        }
      }
    });
    bar.addEventListener("click", (event) => {
      const order = event.target.dataset.order;
      if (!order) return;
      byNeed = order === "next";
      draw();
      if (byNeed && row.firstElementChild) go(Number(row.firstElementChild.dataset.shot));
    });
    row.addEventListener("click", (event) => {
      const button = event.target.closest(".shot");
      if (button) go(Number(button.dataset.shot));
    });
    row.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      const button = event.target.closest(".shot");
      if (!step || !button) return;
      event.preventDefault();
      const next = step > 0 ? button.nextElementSibling : button.previousElementSibling;
      if (next) { next.focus(); go(Number(next.dataset.shot)); }
    });
    on("shots", draw);
    on("moved", mark);
    draw();
  }

  // The frame: before and after by a divider, the map, time, playing; which frames the colors came from.
  function look({ element, server }) {
    const root = element.querySelector(".look");
    strip(root);
    const body = make(`<div>
      <div class="stage"><div class="sheet">
        <img class="gray" alt="the gray frame"><img class="over colored" alt="the colored frame">
        <div class="knob"></div><span class="tag" style="left:8px">before</span><span class="tag" style="right:8px">after</span>
      </div></div>
      <input class="divide" type="range" min="0" max="100" step="0.5" value="50" aria-label="Divider between before and after">
      <div class="row">
        <button data-step="-1" aria-label="Frame before" title="Frame before (,)">&#9664;</button>
        <div class="grow"><input class="time" type="range" min="0" max="1" value="0" aria-label="Frame of the shot"></div>
        <button data-step="1" aria-label="Next frame" title="Next frame (.)">&#9654;</button>
        <output class="quiet" style="min-width:11em"></output>
      </div>
      <div class="row" style="margin-top:8px">
        <button data-view="both" aria-pressed="true">Before | after</button>
        <button data-view="map" aria-pressed="false">What is known</button>
        <button data-act="play">Play the shot</button>
        <span class="grow"></span>
        <button data-act="split" title="Let a shot begin at this frame">Shot begins here</button>
        <button data-act="join" title="The finder saw a cut where there is none">Join to the shot before</button>
      </div>
      <div class="key quiet row" hidden style="margin-top:6px">
        <span><i style="background:#0072b2"></i>recalled</span><span><i style="background:#009e73"></i>guessed</span>
        <span><i style="background:#d55e00"></i>unknown</span></div>
      <h3>Where its colors came from</h3><div class="sources quiet">&ndash;</div>
    </div>`);
    const empty = make(`<div class="empty">No shots yet. Choose a film under <b>Begin</b>; they appear here.</div>`);
    root.append(body, empty);
    const $ = (selector) => body.querySelector(selector);
    const [sheet, gray, colored, knob, divide, time] =
      [".sheet", ".gray", ".colored", ".knob", ".divide", ".time"].map($);
    let view = "both", wanted = null, busy = false, shownShot = "";

    const divideAt = () => {
      const part = Number(divide.value);
      colored.style.clipPath = view === "map" ? "none" : `inset(0 0 0 ${part}%)`;
      knob.style.left = `${part}%`;
      const both = view === "both" && at.colored;
      knob.hidden = !both;
      body.querySelectorAll(".tag").forEach((tag) => { tag.hidden = !both; });
      divide.disabled = !both;
    };
    async function draw() {
      if (!root.offsetParent) return;
      if (busy) { wanted = true; return; }
      busy = true;
      do {
        wanted = false;
        const kinds = view === "map" ? ["gray", "map"] : ["gray", "colored"];
        const width = Math.min(1920, Math.max(320, Math.round(sheet.clientWidth * devicePixelRatio)));
        const got = await ask(server, "frame", { index: at.frame, width, kinds });
        if (got && got.gray) {
          gray.src = got.gray;
          const over = view === "map" ? got.map : got.colored;
          colored.hidden = !over;
          if (over) colored.src = over;
          await gray.decode().catch(() => {});
          root.style.setProperty("--aspect", gray.naturalWidth / Math.max(1, gray.naturalHeight));
          root.dataset.shown = `${got.index}`;
        }
      } while (wanted);
      busy = false;
    }
    async function showSources() {
      const key = `${at.shot}/${at.version}`;
      if (key === shownShot || !at.colored) return;
      shownShot = key;
      const got = await ask(server, "sources", { shot: at.shot });
      if (!got || key !== shownShot) return;
      $(".sources").innerHTML = got.sources.map(({ name, score, picture }) =>
        `<figure>${picture ? `<img src="${picture}" alt="">` : ""}<figcaption title="${text(name)}">${text(name)}</figcaption>
         <span class="quiet">${score.toFixed(2)} alike</span></figure>`).join("") || "&ndash;";
    }
    const stopPlaying = () => { sheet.querySelector("video")?.remove(); };
    function moved() {
      const shot = current();
      body.hidden = !shot;
      empty.hidden = Boolean(shot);
      if (!shot) return;
      stopPlaying();
      Object.assign(time, { min: shot.start, max: shot.end - 1, value: at.frame });
      const seconds = shot.time + shot.seconds * (at.frame - shot.start) / Math.max(1, shot.end - shot.start);
      $("output").textContent = `shot ${at.shot + 1}, frame ${at.frame}, ${clock(seconds)}`;
      $('[data-act="split"]').disabled = at.frame === shot.start || at.running;
      $('[data-act="join"]').disabled = at.shot === 0 || at.running;
      $('[data-view="map"]').disabled = !at.colored;
      divideAt();
      draw();
      showSources();
    }
    const step = (by) => {
      const next = at.frame + by;
      const shot = at.shots.findIndex(({ start, end }) => next >= start && next < end);
      if (shot >= 0) go(shot, next);
    };
    async function play(button) {
      if (sheet.querySelector("video")) { stopPlaying(); return; }
      button.disabled = true;
      const { start, end } = current();
      const got = await ask(server, "clip", { start, end });
      button.disabled = false;
      if (!got) return;
      const film = make('<video class="over" autoplay loop muted playsinline controls></video>');
      film.src = got.film;
      sheet.append(film);
    }
    body.addEventListener("click", async (event) => {
      const { step: by, view: name, act } = event.target.dataset;
      if (by) step(Number(by));
      if (name) {
        view = name;
        body.querySelectorAll("[data-view]").forEach((b) => b.setAttribute("aria-pressed", b.dataset.view === view));
        $(".key").hidden = view !== "map";
        moved();
      }
      if (act === "play") play(event.target);
      if (act === "split") { await ask(server, "split", { frame: at.frame }); tell("hurry"); }
      if (act === "join") { await ask(server, "join", { frame: current().start }); tell("hurry"); }
    });
    time.addEventListener("input", () => go(at.shot, Number(time.value)));
    divide.addEventListener("input", divideAt);
    const drag = (event) => {
      if (event.type === "pointermove" && !event.buttons || view !== "both" || event.target.tagName === "VIDEO") return;
      const box = sheet.getBoundingClientRect();
      divide.value = 100 * Math.max(0, Math.min(1, (event.clientX - box.left) / box.width));
      divideAt();
    };
    sheet.addEventListener("pointerdown", drag);
    sheet.addEventListener("pointermove", drag);
    document.addEventListener("keydown", (event) => {
      if (/INPUT|TEXTAREA|SELECT|VIDEO/.test(event.target.tagName) || event.ctrlKey || event.metaKey || event.altKey) return;
      if (!root.offsetParent) return;
      if (event.key === ".") step(1);
      else if (event.key === ",") step(-1);
      else if (event.key === "]") go(at.shot + 1);
      else if (event.key === "[") go(at.shot - 1);
      else return;
      event.preventDefault();
    });
    on("shots", () => { shownShot = ""; });
    on("moved", moved);
    on("fresh", draw);
    let wide = 0;
    new ResizeObserver(() => {
      if (sheet.clientWidth > 1.1 * wide) { wide = sheet.clientWidth; draw(); }
      if (!sheet.clientWidth) wide = 0;
    }).observe(root);
    on("status", () => {
      const shot = current();
      if (!shot) return;
      $('[data-act="split"]').disabled = at.frame === shot.start || at.running;
      $('[data-act="join"]').disabled = at.shot === 0 || at.running;
    });
    moved();
  }

  // How the training is: its samples and its error.
  function training({ element, server }) {
    const root = element.querySelector(".training");
    let shown = "";
    on("status", async () => {
      if (at.title !== "training" || (!at.running && shown)) return;
      const got = await ask(server, "training");
      if (!got) return;
      const errors = got.errors.map((error) => error.toFixed(1));
      const html = (errors.length
        ? `<h3>Samples: gray, learned, ground truth, and what is remembered</h3>
           <p class="quiet">error ${text(errors[0])}${errors.length > 1 ? ` at first, ${text(errors.at(-1))} now` : ""} (CIEDE2000, less is better)</p>` : "")
        + (got.sample ? `<img class="samples" src="${got.sample}" alt="samples of the training">` : "");
      if (html !== shown) { root.innerHTML = html; shown = html; }
    });
  }

  // Correct: a canvas that is clicked, brushed and picked from; the palette; undo; what remembering will change.
  function hand({ element, server, upload }) {
    const root = element.querySelector(".hand");
    const strips = make("<div></div>");
    strip(strips);
    const tools = [["fill", "Fill", "f", "Click a thing: it takes the color"],
      ["grow", "Join", "j", "Click what belongs to the thing, too"],
      ["cut", "Cut", "x", "Draw a line where the thing ends"], ["brush", "Brush", "b", "Paint by hand"],
      ["erase", "Erase", "e", "Back to the machine's colors"], ["pick", "Pick", "i", "Take the color of a place"]];
    const body = make(`<div class="bench"><div class="easel">
      <div class="row" role="toolbar" aria-label="Tools">${tools.map(([name, label, key, title]) =>
        `<button data-tool="${name}" aria-pressed="${name === "fill"}" title="${title} (${key})">${label}</button>`).join("")}
        <span class="grow"></span>
        <button data-act="undo" title="Undo (Ctrl+Z)">Undo</button><button data-act="redo" title="Redo (Ctrl+Y)">Redo</button>
        <button data-act="reset">Reset</button></div>
      <div class="stage"><div class="sheet"><canvas tabindex="0" aria-label="The frame; arrow keys move the cross, Enter clicks"></canvas>
        <svg class="over cross" hidden><g stroke-width="1.5"><path stroke="#fff" d="M-9 0H9M0 -9V9"/></g></svg></div></div>
      <div class="row"><button data-step="-1" aria-label="Frame before">&#9664;</button>
        <div class="grow"><input class="time" type="range" aria-label="Frame of the shot"></div>
        <button data-step="1" aria-label="Next frame">&#9654;</button><output class="quiet" style="min-width:11em"></output></div>
      <div class="row"><button class="primary" data-act="remember" title="Remember (Ctrl+Enter)">Remember this frame</button>
        <span class="quiet tells grow" aria-live="polite"></span></div>
      <details><summary class="quiet">Paint it in another program</summary><div class="row">
        <button data-act="save">Save the frame in gray</button>
        <label class="quiet">and send it painted: <input class="painted" type="file" accept="image/*"></label></div></details>
      </div><div class="colors">
      <div class="row"><input type="color" value="#c83c32" aria-label="Color"><input class="hex" type="text" value="#c83c32"
        size="8" maxlength="7" aria-label="Color as a number"><label class="quiet size">brush
        <input class="radius" type="range" min="1" max="60" value="10" aria-label="Radius of the brush"></label></div>
      <h3>Colors of the show</h3><div class="swatches"></div>
      <div class="row everywhere" hidden style="margin-top:6px"><span class="quiet">Everywhere, let</span><i class="dot old"></i>
        <span class="quiet">be</span><i class="dot new"></i><button data-act="everywhere">Change</button></div>
      <h3>Pick from a known frame</h3><div class="known"></div>
      </div></div>`);
    const empty = make('<div class="empty">The film is not colored yet; there is nothing to correct.</div>');
    root.append(strips, body, empty);
    const $ = (selector) => body.querySelector(selector);
    const [canvas, cross, hex, well, radius, time] =
      ["canvas", ".cross", ".hex", 'input[type="color"]', ".radius", ".time"].map($);
    const paper = canvas.getContext("2d", { willReadFrequently: true });
    let tool = "fill", stroke = null, at_ = { x: 0, y: 0 }, opened = "", size = [1, 1], state = {}, queue = Promise.resolve();

    let chosen = "";
    const color = (value) => {
      hex.value = well.value = value.toLowerCase();
      const other = chosen && chosen !== hex.value;
      $(".everywhere").hidden = !other;
      $(".dot.old").style.background = chosen;
      $(".dot.new").style.background = hex.value;
      body.querySelectorAll(".swatches button").forEach((b) => b.setAttribute("aria-pressed", b.dataset.color === hex.value));
    };
    const choose = (name) => {
      tool = name;
      body.querySelectorAll("[data-tool]").forEach((b) => b.setAttribute("aria-pressed", b.dataset.tool === name));
      canvas.style.cursor = name === "pick" ? "copy" : "crosshair";
    };
    async function show(got) {
      if (!got) return;
      state = got;
      size = [got.width, got.height];
      const image = new Image();
      image.src = got.picture;
      await image.decode();
      if (canvas.width !== image.width || canvas.height !== image.height) {
        canvas.width = image.width; canvas.height = image.height;
        root.style.setProperty("--aspect", image.width / image.height);
      }
      paper.drawImage(image, 0, 0);
      $('[data-act="undo"]').disabled = !got.undo;
      $('[data-act="redo"]').disabled = !got.redo;
      $('[data-act="reset"]').disabled = !got.undo;
      $('[data-act="remember"]').disabled = !got.changed;
      root.dataset.shown = `${got.frame}`;
      root.dataset.edits = `${got.edits}`;
      tells();
    }
    async function tells() {
      const told = $(".tells");
      if (!state.changed) { told.textContent = ""; return; }
      const frame = state.frame, edits = state.edits;
      told.textContent = "Looking which shots it will change\u2026";
      const got = await ask(server, "touched", { frame });
      if (!got || state.frame !== frame || state.edits !== edits) return;
      told.textContent = got.told;
    }
    // One question after another, so that quick clicks arrive in order.
    const send = (name, data) => { queue = queue.then(() => ask(server, name, data)).then(show); return queue; };
    async function open(force) {
      const shot = current(), ready = shot && at.colored;
      body.hidden = !ready;
      empty.hidden = Boolean(ready);
      if (!ready || !root.offsetParent) return;
      Object.assign(time, { min: shot.start, max: shot.end - 1, value: at.frame });
      $("output").textContent = `shot ${at.shot + 1}, frame ${at.frame}`;
      const key = `${at.frame}/${at.version}`;
      if (!force && opened === key) return;
      opened = key;
      await send("hand_open", { frame: at.frame });
    }
    const place = (event) => {
      const box = canvas.getBoundingClientRect();
      return [(event.clientX - box.left) / box.width * size[0], (event.clientY - box.top) / box.height * size[1]];
    };
    async function act(points) {
      if (tool === "pick") {
        const [x, y] = points[0];
        const [r, g, b] = paper.getImageData(Math.round(x / size[0] * canvas.width), Math.round(y / size[1] * canvas.height), 1, 1).data;
        color("#" + [r, g, b].map((v) => v.toString(16).padStart(2, "0")).join(""));
        choose("fill");
        return;
      }
      if (!/^#[0-9a-f]{6}$/i.test(hex.value)) { problem = "a color is # and six digits, such as #c83c32"; tell("problem"); return; }
      send("hand_act", { frame: at.frame, tool, points, color: hex.value, radius: Number(radius.value) });
    }
    const long = () => tool === "cut" || tool === "brush" || tool === "erase";
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      stroke = [place(event)];
    });
    canvas.addEventListener("pointermove", (event) => {
      if (!stroke || !long()) return;
      const to = place(event), from = stroke.at(-1), scale = canvas.width / size[0];
      paper.strokeStyle = tool === "brush" ? hex.value : "#fff";
      paper.lineWidth = tool === "cut" ? 2 : Math.max(1, 2 * radius.value * scale);
      paper.lineCap = "round";
      paper.beginPath(); paper.moveTo(from[0] * scale, from[1] * scale); paper.lineTo(to[0] * scale, to[1] * scale); paper.stroke();
      stroke.push(to);
    });
    canvas.addEventListener("pointerup", () => {
      if (!stroke) return;
      const points = long() ? stroke : stroke.slice(0, 1);
      stroke = null;
      act(points);
    });
    canvas.addEventListener("pointercancel", () => { stroke = null; open(true); });
    canvas.addEventListener("keydown", (event) => {
      const by = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
      if (by) {
        const step = size[0] / (event.shiftKey ? 20 : 160);
        at_ = { x: Math.max(0, Math.min(size[0] - 1, at_.x + by[0] * step)), y: Math.max(0, Math.min(size[1] - 1, at_.y + by[1] * step)) };
        cross.removeAttribute("hidden");
        const box = cross.getBoundingClientRect();
        cross.firstElementChild.setAttribute("transform", `translate(${at_.x / size[0] * box.width} ${at_.y / size[1] * box.height})`);
        event.preventDefault();
      } else if (event.key === "Enter" && !event.ctrlKey) { act([[at_.x, at_.y]]); event.preventDefault(); }
    });
    body.addEventListener("click", async (event) => {
      const target = event.target.closest("button");
      if (!target) return;
      const { tool: name, act: what, color: value, step } = target.dataset;
      if (name) choose(name);
      if (value) { chosen = value; color(value); }
      if (what === "everywhere") {
        if (await ask(server, "change_color", { old: chosen, new: hex.value })) tell("hurry");
        return;
      }
      if (step) { const next = at.frame + Number(step); const shot = at.shots.findIndex((s) => next >= s.start && next < s.end); if (shot >= 0) go(shot, next); }
      if (what === "save") save();
      else if (what === "remember") remember();
      else if (what) send("hand_step", { frame: at.frame, name: what });
    });
    async function save() {
      const frame = at.frame, got = await ask(server, "hand_save", { frame });
      if (!got) return;
      const link = document.createElement("a");
      [link.href, link.download] = [got.picture, `frame_${String(frame).padStart(6, "0")}.png`];
      link.click();
    }
    $(".painted").addEventListener("change", async (event) => {
      const [file] = event.target.files, frame = at.frame;
      if (!file) return;
      const sent = await upload(file).catch(() => null);
      event.target.value = "";
      if (!sent) { problem = "the picture could not be sent; is it larger than the page takes?"; tell("problem"); return; }
      if (await ask(server, "hand_painted", { frame, path: sent.path })) tell("hurry");
    });
    async function remember() {
      if (!state.changed) return;
      $('[data-act="remember"]').disabled = true;
      if (await ask(server, "hand_remember", { frame: state.frame })) tell("hurry");
    }
    time.addEventListener("input", () => go(at.shot, Number(time.value)));
    well.addEventListener("input", () => color(well.value));
    hex.addEventListener("change", () => { if (/^#[0-9a-f]{6}$/i.test(hex.value)) color(hex.value); });
    document.addEventListener("keydown", (event) => {
      if (!root.offsetParent || /TEXTAREA|SELECT/.test(event.target.tagName) || event.target.type === "text" || event.target.type === "number") return;
      const key = event.key.toLowerCase();
      const named = !event.ctrlKey && !event.metaKey && !event.altKey && tools.find(([, , shortcut]) => shortcut === key);
      if (named) choose(named[0]);
      else if ((event.ctrlKey || event.metaKey) && key === "z") send("hand_step", { frame: at.frame, name: event.shiftKey ? "redo" : "undo" });
      else if ((event.ctrlKey || event.metaKey) && key === "y") send("hand_step", { frame: at.frame, name: "redo" });
      else if ((event.ctrlKey || event.metaKey) && key === "enter") remember();
      else return;
      event.preventDefault();
    });
    let palette = "";
    async function showPalette() {
      const got = await ask(server, "palette");
      if (!got) return;
      const html = got.colors.map(({ hex: value, name }) =>
        `<button data-color="${value}" style="background:${value}" aria-label="${value}" aria-pressed="false" title="${value} ${text(name)}"></button>`).join("");
      if (html !== palette) { $(".swatches").innerHTML = palette = html; }
      $(".known").innerHTML = got.frames.map(({ name, picture }) =>
        `<button class="from" title="${text(name)}" aria-label="Pick from ${text(name)}"><img src="${picture}" alt=""></button>`).join("");
    }
    $(".known").addEventListener("click", (event) => {
      const image = event.target.closest("button")?.querySelector("img");
      if (!image) return;
      const box = image.getBoundingClientRect(), by = event.detail ? [event.clientX - box.left, event.clientY - box.top] : [box.width / 2, box.height / 2];
      const sheet = document.createElement("canvas");
      [sheet.width, sheet.height] = [image.naturalWidth, image.naturalHeight];
      const ink = sheet.getContext("2d");
      ink.drawImage(image, 0, 0);
      const [r, g, b] = ink.getImageData(Math.floor(by[0] / box.width * (sheet.width - 1)), Math.floor(by[1] / box.height * (sheet.height - 1)), 1, 1).data;
      color("#" + [r, g, b].map((v) => v.toString(16).padStart(2, "0")).join(""));
    });
    let knew = "";
    const look_ = () => {
      const key = `${at.colored}/${at.version}`;
      if (root.offsetParent && at.colored && knew !== key) { knew = key; showPalette(); }
      open();
    };
    on("moved", look_);
    on("status", look_);
    new ResizeObserver(look_).observe(root);
    look_();
  }

  // The corrections that are remembered.
  function fixes({ element, server }) {
    const root = element.querySelector(".fixes");
    root.className = "studio";
    async function draw() {
      const got = await ask(server, "fixes");
      if (!got) return;
      root.innerHTML = `<h3>Remembered</h3>` + (got.fixes.length
        ? `<div class="fixes">` + got.fixes.map(({ file, frame, picture }) =>
          `<figure><img src="${picture}" alt="frame ${frame} as it was painted"><div class="row">
           <span class="grow quiet">frame ${frame}</span><button data-file="${text(file)}">Take back</button></div></figure>`).join("") + "</div>"
        : `<p class="quiet">Nothing yet.</p>`)
        + (got.changes.length ? "<h3>Changed everywhere</h3>" + got.changes.map(([old, now]) =>
          `<div class="row change"><i class="dot" style="background:${text(old)}"></i><span>${text(old)} is</span>
           <i class="dot" style="background:${text(now)}"></i><span class="grow">${text(now)}</span>
           <button data-old="${text(old)}">Take back</button></div>`).join("") : "");
    }
    root.addEventListener("click", async (event) => {
      const { file, old } = event.target.dataset;
      if (!file && !old) return;
      event.target.disabled = true;
      await (file ? ask(server, "take_back", { file }) : ask(server, "change_color", { old, new: old }));
      tell("hurry");
      draw();
    });
    on("shots", draw);
    draw();
  }

  return { status, look, training, hand, fixes, ask, make, text, clock, on, tell, at, go, current };
})();

// The page of studio.py: state shared by all panels, calls to the server, the status bar and the filmstrip.
// Each panel is a function of {element, server, upload}: its element, the Python functions that it may call (see
// studio.py), and Gradio's upload function. Panels notify each other with the events "status", "shots", "moved",
// "finished" (the current shot is colored), "problem" and "poll" (request the status now).
window.studio = (() => {
  const events = new EventTarget();
  const state = { shots: [], colored: false, shot: 0, frame: 0, version: 0, finished: [] };
  const emit = (name) => events.dispatchEvent(new Event(name));
  const on = (name, listener) => events.addEventListener(name, listener);
  let problem = "";

  function report(message) {
    problem = message;
    emit("problem");
  }

  // Call a Python function and return its answer. If it fails, report the error and return null.
  async function call(server, name, data = {}) {
    let answer;
    try {
      answer = await server[name](data);
    } catch (error) {
      answer = { error: "the studio does not answer; check whether studio.py is still running" };
    }
    if (!answer?.error) return answer;
    report(answer.error);
    return null;
  }

  function createElement(html) {
    const template = document.createElement("template");
    template.innerHTML = html.trim();
    return template.content.firstElementChild;
  }

  const escape = (value) => String(value).replace(/[&<>"']/g, (c) => `&#${c.charCodeAt(0)};`);

  function formatTime(seconds) {
    const whole = Math.floor(seconds);
    const tenth = Math.floor((seconds - whole) * 10);
    return `${Math.floor(whole / 60)}:${String(whole % 60).padStart(2, "0")}.${tenth}`;
  }

  function formatRemaining(seconds) {
    if (seconds === null || seconds === undefined) return "";
    return seconds < 90 ? `about ${Math.max(1, seconds)} s left` : `about ${Math.round(seconds / 60)} minutes left`;
  }

  const currentShot = () => state.shots[state.shot];

  // Go to a frame of a shot, by default its middle frame.
  function goTo(shot, frame) {
    if (!state.shots.length) return;
    state.shot = Math.max(0, Math.min(state.shots.length - 1, shot));
    const { start, end, middle } = currentShot();
    state.frame = Math.max(start, Math.min(end - 1, frame === undefined ? middle : frame));
    emit("moved");
  }

  // Go `by` frames forward (backward if negative), possibly into a different shot.
  function step(by) {
    const frame = state.frame + by;
    const shot = state.shots.findIndex(({ start, end }) => frame >= start && frame < end);
    if (shot >= 0) goTo(shot, frame);
  }

  function press(buttons, isPressed) {
    buttons.forEach((button) => button.setAttribute("aria-pressed", Boolean(isPressed(button.dataset))));
  }

  const KEYS = [["Alt+1 \u2026 Alt+5", "Setup, View, Correct, Palette, Export"], [", .", "previous and next frame"],
    ["[ ]", "previous and next shot"], ["Tab, Enter", "next control, use it"], ["?", "this list"],
    ["Space c s j", "View: play the shot, confidence, split, join"], ["f a g x b e i", "Correct: the tools"],
    ["Arrows, Enter", "move the cross on the frame (Shift: faster), click"], ["1 \u2026 9", "accept a proposed color"],
    ["+ \u2212", "likeness or size of the brush"], ["h", "enter a hexadecimal color"], ["Esc", "hide the preview"],
    ["Ctrl+Z, Ctrl+Y", "undo, redo"], ["Ctrl+Enter", "add as reference"], ["l h", "Palette: lock the color, enter its replacement"]];

  const tabs = () => document.querySelectorAll('[role="tablist"] [role="tab"]');

  // Handle the keys of all tabs.
  function handleKey(event, dialog) {
    if (/TEXTAREA|SELECT/.test(event.target.tagName) || /text|number/.test(event.target.type) || event.ctrlKey || event.metaKey) return;
    const tab = event.altKey && tabs()[Number(event.key) - 1];
    const by = { ".": 1, ",": -1 }[event.key], shots = { "]": 1, "[": -1 }[event.key];
    if (tab) tab.click();
    else if (event.altKey) return;
    else if (by) step(by);
    else if (shots) goTo(state.shot + shots);
    else if (event.key === "?") dialog.open ? dialog.close() : dialog.showModal();
    else return;
    event.preventDefault();
  }

  // Show the current job and the last error, and poll the server.
  function status({ element, server }) {
    const root = element.querySelector(".status");
    const dialog = createElement(`<dialog><table>${KEYS.map(([keys, meaning]) =>
      `<tr><td><kbd>${keys}</kbd></td><td>${meaning}</td></tr>`).join("")}</table></dialog>`);
    const panel = createElement('<div class="grow"></div>');
    const bar = createElement('<div class="row"></div>');
    bar.append(panel, createElement('<button class="keys" title="Keyboard (?)">Keys</button>'));
    root.append(bar, dialog);
    bar.lastElementChild.addEventListener("click", () => dialog.showModal());
    document.addEventListener("keydown", (event) => handleKey(event, dialog));
    let latest = null;
    const draw = (now) => {
      const percent = Math.round(now.progress * 100);
      const row = now.running
        ? `<b>${escape(now.title)}</b><span class="quiet">${escape(now.message)}</span>
           <div class="track" role="progressbar" aria-valuenow="${percent}"
             aria-valuemin="0" aria-valuemax="100" aria-label="${escape(now.title)}">
             <div style="width:${now.progress * 100}%"></div></div>
           <span class="quiet">${percent} % ${formatRemaining(now.seconds_left)}</span>
           <button data-call="cancel">Cancel</button>`
        : `<span>${now.film ? escape(now.film) : "No film"}</span>
           <span class="quiet">${now.checkpoint ? "" : "no checkpoint"}${now.outdated ? "changed since it was colored" : ""}</span>
           ${now.outdated ? '<button class="primary" data-call="color">Color the film</button>' : ""}`;
      const error = now.error || problem;
      const html = `<div class="row">${row}</div>` + (error ? `<div class="problem" role="alert">${escape(error)}</div>` : "");
      if (panel.dataset.html !== html) panel.innerHTML = panel.dataset.html = html;
    };
    let opening = true;
    // Open View for a project with a film, as soon as the tabs exist, unless another tab was chosen in the meantime.
    function openFirstTab(now) {
      const [setup, view] = tabs();
      if (!opening || !view) return;
      if (now.film && setup.ariaSelected === "true") view.click();
      setTimeout(() => { opening = opening && now.film && setup.ariaSelected === "true"; }, 200);
    }
    async function poll() {
      const now = await call(server, "status");
      if (!now) return;
      openFirstTab(now);
      latest = now;
      const start = currentShot()?.start;
      const newlyFinished = now.finished.includes(start) && !state.finished.includes(start);
      Object.assign(state, { running: now.running, title: now.title, finished: now.finished });
      draw(now);
      emit("status");
      if (newlyFinished) emit("finished");
      if (now.version !== state.version) {
        state.version = now.version;
        await loadShots(server);
      }
    }
    panel.addEventListener("click", (event) => {
      const name = event.target.dataset.call;
      if (name) { problem = ""; call(server, name).then(poll); }
    });
    on("problem", () => latest && draw(latest));
    on("moved", () => { if (problem) report(""); });
    on("poll", poll);
    (async () => {
      while (document.body.contains(root)) {
        await poll();
        await new Promise((done) => setTimeout(done, state.running ? 700 : 1500));
      }
    })();
  }

  async function loadShots(server) {
    const answer = await call(server, "shots");
    if (!answer) return;
    const first = !state.shots.length;
    Object.assign(state, answer);
    if (state.shots.length) {
      state.shot = Math.max(0, state.shots.findIndex(({ start, end }) => state.frame >= start && state.frame < end));
      if (first) state.frame = currentShot().middle;
    }
    emit("shots");
    emit("moved");
  }

  // Show the shots as a row of buttons; the arrow keys move between them.
  function filmstrip(root) {
    let suggestedFirst = false;
    const bar = createElement(`<div class="bar"><div class="quiet"></div>
      <button data-order="time" aria-pressed="true">By time</button>
      <button data-order="rank" aria-pressed="false">Suggested first</button></div>`);
    const row = createElement('<div class="strip" role="listbox" aria-label="Shots of the film"></div>');
    const film = createElement('<div class="film"></div>');
    film.append(row, bar);
    root.append(film);
    const draw = () => {
      const doubtful = state.shots.filter((shot) => shot.doubtful).length;
      bar.firstElementChild.textContent = state.shots.length
        ? `${state.shots.length} shots, ` + (state.colored ? `${doubtful} doubtful` : "not colored") : "";
      press(bar.querySelectorAll("button"), ({ order }) => (order === "rank") === suggestedFirst);
      bar.querySelector('[data-order="rank"]').disabled = !state.colored;
      const order = state.shots.map((_, index) => index);
      const rank = (index) => state.shots[index].rank || 1e9;
      if (suggestedFirst) order.sort((a, b) => rank(a) - rank(b) || a - b);
      row.innerHTML = order.map((index) => {
        const shot = state.shots[index];
        const label = `Shot ${index + 1}, ${formatTime(shot.time)}` + (shot.doubtful ? ", low confidence" : "");
        const confidence = shot.confidence === null ? "" : `<span class="confidence"
          title="confidence ${Math.round(shot.confidence * 100)} %"><i style="width:${shot.confidence * 100}%"></i></span>`;
        return `<button class="shot${shot.doubtful ? " doubtful" : ""}" role="option" data-shot="${index}" aria-label="${label}">
          <img src="${shot.picture}" alt="" loading="lazy">
          <span><b>${index + 1}</b>${shot.rank ? `<em class="rank" title="suggestion ${shot.rank}">#${shot.rank}</em>` : ""}
          <em class="quiet">${formatTime(shot.time)}</em></span>${confidence}</button>`;
      }).join("");
      select();
    };
    const select = () => row.querySelectorAll(".shot").forEach((button) => {
      const selected = Number(button.dataset.shot) === state.shot;
      button.setAttribute("aria-selected", selected);
      button.tabIndex = selected ? 0 : -1;
      if (!selected) return;
      const left = button.offsetLeft - row.offsetLeft;
      if (left < row.scrollLeft || left + button.offsetWidth > row.scrollLeft + row.clientWidth) {
        row.scrollLeft = left - row.clientWidth / 2 + button.offsetWidth / 2;
      }
    });
    bar.addEventListener("click", (event) => {
      const order = event.target.dataset.order;
      if (!order) return;
      suggestedFirst = order === "rank";
      draw();
      if (suggestedFirst && row.firstElementChild) goTo(Number(row.firstElementChild.dataset.shot));
    });
    row.addEventListener("click", (event) => {
      const button = event.target.closest(".shot");
      if (button) goTo(Number(button.dataset.shot));
    });
    row.addEventListener("keydown", (event) => {
      const button = event.target.closest(".shot");
      const next = button && { ArrowRight: button.nextElementSibling, ArrowLeft: button.previousElementSibling }[event.key];
      if (next === undefined || next === null) return;
      event.preventDefault();
      next.focus();
      goTo(Number(next.dataset.shot));
    });
    on("shots", draw);
    on("moved", select);
    draw();
  }

  return { status, filmstrip, call, report, createElement, escape, formatTime, press, on, emit, state, goTo, step, currentShot };
})();

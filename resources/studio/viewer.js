// The panels that show the film (frames before and after coloring, confidence, clips, color sources) and the training run.
(() => {
  const { call, createElement, currentShot, emit, escape, filmstrip, formatTime, goTo, on, press, state, step } = window.studio;

  window.studio.viewer = ({ element, server }) => {
    const root = element.querySelector(".viewer");
    filmstrip(root);
    const body = createElement(`<div>
      <div class="stage"><div class="sheet">
        <img class="gray" alt="the grayscale frame"><img class="over colored" alt="the colored frame">
        <div class="knob"></div><span class="tag" style="left:8px">before</span><span class="tag" style="right:8px">after</span>
      </div></div>
      <input class="divider" type="range" min="0" max="100" step="0.5" value="50" aria-label="Divider between before and after">
      <div class="row">
        <button data-step="-1" aria-label="Previous frame" title="Previous frame (,)">&#9664;</button>
        <div class="grow"><input class="time" type="range" min="0" max="1" value="0" aria-label="Frame of the shot"></div>
        <button data-step="1" aria-label="Next frame" title="Next frame (.)">&#9654;</button>
        <output class="quiet" style="min-width:11em"></output>
      </div>
      <div class="row" style="margin-top:8px">
        <button data-view="colored" aria-pressed="true">Before | after</button>
        <button data-view="confidence" aria-pressed="false">Confidence</button>
        <button data-action="play" title="Play the shot before and after (Space)">Play the shot</button>
        <span class="grow"></span>
        <button data-action="split" title="Start a shot at this frame">Split here</button>
        <button data-action="join" title="Remove the cut before this shot">Join with previous shot</button>
      </div>
      <div class="legend quiet row" hidden style="margin-top:6px">
        <span><i style="background:#0072b2"></i>recalled</span><span><i style="background:#009e73"></i>predicted</span>
        <span><i style="background:#d55e00"></i>unknown</span></div>
      <h3>Color sources</h3><div class="sources quiet">&ndash;</div>
    </div>`);
    const empty = createElement('<div class="empty">No shots yet. Choose a film in <b>Setup</b>.</div>');
    root.append(body, empty);
    const $ = (selector) => body.querySelector(selector);
    const [sheet, gray, colored, knob, divider, time] =
      [".sheet", ".gray", ".colored", ".knob", ".divider", ".time"].map($);
    let view = "colored", outdated = false, loading = false, sourcesKey = "";

    const moveDivider = () => {
      const divided = view === "colored" && state.colored;
      colored.style.clipPath = view === "confidence" ? "none" : `inset(0 0 0 ${Number(divider.value)}%)`;
      const playing = sheet.querySelector(".gray.over");
      if (playing) playing.style.width = `${Number(divider.value)}%`;
      knob.style.left = `${Number(divider.value)}%`;
      knob.hidden = divider.disabled = !divided;
      body.querySelectorAll(".tag").forEach((tag) => { tag.hidden = !divided; });
    };
    async function drawFrame() {
      if (!root.offsetParent) return;
      if (loading) { outdated = true; return; }
      loading = true;
      do {
        outdated = false;
        const width = Math.min(1920, Math.max(320, Math.round(sheet.clientWidth * devicePixelRatio)));
        const answer = await call(server, "frame", { index: state.frame, width, kinds: ["gray", view] });
        if (answer?.gray) {
          gray.src = answer.gray;
          const over = answer[view];
          colored.hidden = !over;
          if (over) colored.src = over;
          await gray.decode().catch(() => {});
          root.style.setProperty("--aspect", gray.naturalWidth / Math.max(1, gray.naturalHeight));
          root.dataset.shown = `${answer.index}`;
        }
      } while (outdated);
      loading = false;
    }
    async function drawSources() {
      const key = `${state.shot}/${state.version}`;
      if (key === sourcesKey || !state.colored) return;
      sourcesKey = key;
      const answer = await call(server, "sources", { shot: state.shot });
      if (!answer || key !== sourcesKey) return;
      $(".sources").innerHTML = answer.sources.map(({ name, score, picture }) =>
        `<figure>${picture ? `<img src="${picture}" alt="">` : ""}<figcaption title="${escape(name)}">${escape(name)}</figcaption>
         <span class="quiet">similarity ${score.toFixed(2)}</span></figure>`).join("") || "&ndash;";
    }
    const stopPlaying = () => sheet.querySelectorAll("video, .gray.over").forEach((each) => each.remove());
    function enableCuts() {
      const shot = currentShot();
      if (!shot) return;
      $('[data-action="split"]').disabled = state.frame === shot.start || state.running;
      $('[data-action="join"]').disabled = state.shot === 0 || state.running;
    }
    function draw() {
      const shot = currentShot();
      body.hidden = !shot;
      empty.hidden = Boolean(shot);
      if (!shot) return;
      stopPlaying();
      Object.assign(time, { min: shot.start, max: shot.end - 1, value: state.frame });
      const seconds = shot.time + shot.seconds * (state.frame - shot.start) / Math.max(1, shot.end - shot.start);
      $("output").textContent = `shot ${state.shot + 1}, frame ${state.frame}, ${formatTime(seconds)}`;
      $('[data-view="confidence"]').disabled = !state.colored;
      enableCuts();
      moveDivider();
      drawFrame();
      drawSources();
    }
    async function play(button) {
      if (sheet.querySelector("video")) { stopPlaying(); return; }
      button.disabled = true;
      const { start, end } = currentShot();
      const answer = await call(server, "clip", { start, end });
      button.disabled = false;
      if (!answer) return;
      const video = createElement('<video class="over" autoplay loop muted playsinline></video>');
      video.src = answer.video;
      colored.after(video, createElement('<div class="gray over"></div>'));  // left of the divider without color
      moveDivider();
    }
    body.addEventListener("click", async (event) => {
      const { step: by, view: name, action } = event.target.dataset;
      if (by) step(Number(by));
      if (name) {
        view = name;
        press(body.querySelectorAll("[data-view]"), (data) => data.view === view);
        $(".legend").hidden = view !== "confidence";
        draw();
      }
      if (action === "play") play(event.target);
      if (action === "split") { await call(server, "split_shot", { frame: state.frame }); emit("poll"); }
      if (action === "join") { await call(server, "join_shot", { frame: currentShot().start }); emit("poll"); }
    });
    time.addEventListener("input", () => goTo(state.shot, Number(time.value)));
    divider.addEventListener("input", moveDivider);
    const drag = (event) => {
      if (event.type === "pointermove" && !event.buttons || view !== "colored") return;
      const box = sheet.getBoundingClientRect();
      divider.value = 100 * Math.max(0, Math.min(1, (event.clientX - box.left) / box.width));
      moveDivider();
    };
    sheet.addEventListener("pointerdown", drag);
    sheet.addEventListener("pointermove", drag);
    document.addEventListener("keydown", (event) => {
      if (/INPUT|TEXTAREA|SELECT|VIDEO/.test(event.target.tagName) || event.ctrlKey || event.metaKey || event.altKey) return;
      if (!root.offsetParent) return;
      const selector = { " ": '[data-action="play"]', c: `[data-view="${view === "colored" ? "confidence" : "colored"}"]`,
        s: '[data-action="split"]', j: '[data-action="join"]' }[event.key];
      if (event.target.tagName === "BUTTON" && event.key === " " || !selector) return;
      $(selector).click();
      event.preventDefault();
    });
    on("shots", () => { sourcesKey = ""; });
    on("moved", draw);
    on("finished", drawFrame);
    on("status", enableCuts);
    let width = 0;
    new ResizeObserver(() => {  // load a larger picture when the page has grown
      if (sheet.clientWidth > 1.1 * width) { width = sheet.clientWidth; drawFrame(); }
      if (!sheet.clientWidth) width = 0;
    }).observe(root);
    draw();
  };

  window.studio.training = ({ element, server }) => {
    const root = element.querySelector(".training");
    let shown = "";
    on("status", async () => {
      if (state.title !== "training" || (!state.running && shown)) return;
      const answer = await call(server, "training_progress");
      if (!answer) return;
      const errors = answer.errors.map((error) => error.toFixed(1));
      const html = (answer.preview ? `<h3>First colored shot; training goes on</h3>
        <video class="samples" src="${answer.preview}" autoplay loop muted playsinline></video>` : "") + (errors.length
        ? `<h3>Samples: input, result, ground truth and remembered frame</h3>
           <p class="quiet">validation error ${escape(errors.at(-1))}${errors.length > 1 ? `, ${escape(errors[0])} after the first epoch` : ""}
           (CIEDE2000, lower is better)</p>` : "")
        + (answer.samples ? `<img class="samples" src="${answer.samples}" alt="training samples">` : "");
      if (html !== shown) root.innerHTML = shown = html;
    });
  };
})();

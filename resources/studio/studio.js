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
      Object.assign(at, { running: now.running, title: now.title, now });
      show(now);
      tell("status");
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
      knob.style.display = both ? "" : "none";
      body.querySelectorAll(".tag").forEach((tag) => { tag.style.display = both ? "" : "none"; });
      divide.disabled = !both;
    };
    async function draw() {
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
          colored.style.display = over ? "" : "none";
          if (over) colored.src = over;
          await gray.decode().catch(() => {});
          sheet.style.setProperty("--aspect", gray.naturalWidth / Math.max(1, gray.naturalHeight));
          root.dataset.shown = `${at.frame}`;
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
      body.style.display = shot ? "" : "none";
      empty.style.display = shot ? "none" : "";
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
        $(".key").style.display = view === "map" ? "" : "none";
        moved();
      }
      if (act === "play") play(event.target);
      if (act === "split") { await ask(server, "split", { frame: at.frame }); tell("hurry"); }
      if (act === "join") { await ask(server, "join", { frame: current().start }); tell("hurry"); }
    });
    $(".key").style.display = "none";
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
        ? `<h3>Samples: gray, learned, truth, and what is remembered</h3>
           <p class="quiet">error ${text(errors[0])}${errors.length > 1 ? ` at first, ${text(errors.at(-1))} now` : ""} (CIEDE2000, less is better)</p>` : "")
        + (got.sample ? `<img class="samples" src="${got.sample}" alt="samples of the training">` : "");
      if (html !== shown) { root.innerHTML = html; shown = html; }
    });
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
        : `<p class="quiet">Nothing yet.</p>`);
    }
    root.addEventListener("click", async (event) => {
      const file = event.target.dataset.file;
      if (!file) return;
      event.target.disabled = true;
      await ask(server, "take_back", { file });
      tell("hurry");
      draw();
    });
    on("shots", draw);
    draw();
  }

  return { status, look, training, fixes, ask, make, text, clock, on, tell, at, go, current };
})();

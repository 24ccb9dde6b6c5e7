"""How did it go? ``write_report`` makes the page of a coloured film, and ``suggest_frames`` says what to colour next.

The page is a single file that needs nothing else: pictures and styles are inside, and there is no script.
"""

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dataset import resize
from parts import THUMBNAIL, ShotRecord
from utils import Scores, replace_when_done


def _frames(record):
    return record.end_frame - record.start_frame


def _certainty(record):
    """The confidence, 0 where it is unknown; the colours of a shot that was left as it is are certain."""
    return 1.0 if record.kept else record.confidence if math.isfinite(record.confidence) else 0.0


# ---------------------------------------------------------------------------------------------------------------------
# Colour these next

# Similarity is cosine^SHARPNESS. The backbone gives frames of one shot cosines of 0.8 to 1 (0.2 to 1 when sharpened),
# and three in four pairs of frames of different shots less than 0.65 (0.03).
SHARPNESS = 8
WORTH = 0.005  # least share of the doubt that a suggested frame settles
HELPED = 0.25  # a shot counts as helped when its best similarity grows by this much


@dataclass
class Suggestion:
    """A frame worth colouring by hand: the middle frame of ``shot``."""

    shot: ShotRecord
    gain: float  # share of the film's doubt that it removes, beyond the suggestions before it
    helped: list[int]  # index of the shots that it helps, most helped first, itself included

    @property
    def frame(self) -> int:
        """Index of the frame in the film."""
        return (self.shot.start_frame + self.shot.end_frame) // 2

    @property
    def file_name(self) -> str:
        return f"shot_{self.shot.index + 1}_frame_{self.frame}.png"


def suggest_frames(records: Sequence[ShotRecord], count: int = 10) -> list[Suggestion]:
    """The at most ``count`` frames whose colouring would help the most low-confidence shots, best first.

    A greedy cover (facility location; Nemhauser, Wolsey and Fisher 1978): it maximises the sum over shots of doubt
    times similarity to the most similar chosen frame. So it takes one frame for many shots that look alike. The doubt
    of a shot is frames * (1 - confidence).
    """
    features, doubt, indices = zip(*((r.feature, _frames(r) * (1 - _certainty(r)), r.index) for r in records),
                                   strict=True)
    features, doubt = np.stack(features).astype(np.float32), np.array(doubt)
    features /= np.linalg.norm(features, axis=1, keepdims=True).clip(1e-12)
    similarity = (features @ features.T).clip(0, 1) ** SHARPNESS  # (shots, candidates)
    covered, suggestions = np.zeros(len(records), np.float32), []
    while len(suggestions) < count:
        growth = (similarity - covered[:, None]).clip(min=0)
        gain = doubt @ growth
        best = int(gain.argmax())
        if gain[best] <= WORTH * doubt.sum():  # what is left is not worth the painting
            break
        helped = [indices[i] for i in np.argsort(-doubt * growth[:, best], kind="stable")
                  if growth[i, best] >= HELPED and doubt[i] > 0]
        suggestions.append(Suggestion(records[best], float(gain[best] / doubt.sum()), helped))
        covered = np.maximum(covered, similarity[:, best])
    return suggestions


# ---------------------------------------------------------------------------------------------------------------------
# The page

PICTURES = 1000  # of the width THUMBNAIL; more of them are smaller: an episode takes 17 MB, a long film 26 MB
SOURCE_THUMBNAIL = 128  # width of a training frame
LINKS = 8  # shots that a suggestion names


def write_report(path: Path, records: Sequence[ShotRecord], title: str, suggestions: Sequence[Suggestion] = (), *,
                 names: dict[int, str] | None = None, thumbnails: dict[int, np.ndarray] | None = None,
                 summaries: dict[str, dict[str, float]] | None = None, facts: dict[str, Any] | None = None,
                 folder: str = "") -> None:
    """Write the page of a film.

    ``records``: its ShotRecords, a sequence that may make each when it is asked for. ``suggestions``: of
    ``suggest_frames``, whose pictures lie in ``folder`` (a name to be shown) as ``Suggestion.file_name``. ``names`` and
    ``thumbnails``: file name and picture (RGB uint8, any size) of training frames by their id, as far as known.
    ``summaries``: {row name: Scores.summary()}, where there is a truth. ``facts``: {label: text} to be shown under the
    title. Raises UserError when ``path`` cannot be written.
    """
    pictures = sum(2 + (record.truth is not None) for record in records) + len(suggestions)
    width = round(THUMBNAIL * min(1, math.sqrt(PICTURES / pictures)))
    sources = {i: _image(picture, min(SOURCE_THUMBNAIL, width), "") for i, picture in (thumbnails or {}).items()}
    order = np.argsort([_certainty(record) for record in records], kind="stable")
    # One by one, and in a coding that takes any file name, also one whose bytes are no text.
    with replace_when_done(path) as temporary, open(temporary, "w", encoding="utf-8", errors="replace") as page:
        page.write(_header(records, title, summaries, facts or {}))
        page.write(_timeline(records, suggestions))
        page.write(_next(suggestions, width, folder))
        page.write("<section><h2>Shots, the doubtful ones first</h2>")
        for place in order:
            page.write(_shot(records[place], width, names or {}, sources))
        page.write("</section></main></body></html>\n")


def _header(records, title, summaries, facts):
    frames, start, end, confidence, cdc, cdc_truth = np.array(
        [(_frames(r), r.start_time, r.end_time, r.confidence, r.cdc, r.cdc_truth) for r in records]).T
    tiles = [("frames", f"{frames.sum():,.0f}"), ("shots", f"{len(frames):,}"),
             ("length", _time(end.max() - start.min()))]
    known = np.isfinite(confidence)
    if known.any():
        tiles.append(("mean confidence", f"{np.average(confidence[known], weights=frames[known]):.0%}"))
    known = np.isfinite(cdc)
    if known.any():
        tiles.append(("CDC " + _hint("colour distribution consistency: 0 is perfectly steady"),
                      _cdc(*(np.average(values[known], weights=frames[known]) for values in (cdc, cdc_truth)))))
    tiles = "".join(f"<div><dd>{value}</dd><dt>{label}</dt></div>" for label, value in tiles)
    facts = "".join(f"<span>{escape(label)} <b>{escape(str(text))}</b></span>" for label, text in facts.items())
    table = ""
    if summaries:
        head = "".join(f"<th>{escape(column)}</th>" for column in Scores.COLUMNS.values())
        rows = "".join(f"<tr><th>{escape(name)}</th>" + "".join(f"<td>{row[column]:.3f}</td>" for column in row)
                       + "</tr>" for name, row in summaries.items())
        table = f'<div class="scroll"><table><tr><th>against the truth</th>{head}</tr>{rows}</table></div>'
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{escape(title)} in colour</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<style>{STYLE}</style></head><body><main>
<header><h1>{escape(title)}</h1><p class="facts">{facts}</p><dl>{tiles}</dl>{table}</header>
"""


def _timeline(records, suggestions):
    """The film from left to right, a bar for each shot: the higher, the more doubtful."""
    start, end = min(record.start_time for record in records), max(record.end_time for record in records)
    length, bars = (end - start) or 1, []
    for record in records:
        left, right = (1000 * (time - start) / length for time in (record.start_time, record.end_time))
        certainty = _certainty(record)
        height = 4 + 52 * (1 - certainty)
        tip = f"shot {record.index + 1}, {_time(record.start_time)}{_sure(record, ', ')}"
        bars.append(f'<a href="#shot-{record.index + 1}"><title>{tip}</title><rect class="all" x="{left:.2f}" y="0" '
                    f'width="{right - left:.2f}" height="64"/><rect style="--c:{certainty:.3f}" x="{left:.2f}" '
                    f'y="{64 - height:.1f}" width="{max(right - left - 1, (right - left) * 0.7):.2f}" '
                    f'height="{height:.1f}"/></a>')
    middles = [(s.shot.start_time + s.shot.end_time) / 2 for s in suggestions]
    marks = "".join(f'<i style="left:{100 * (middle - start) / length:.2f}%">{i}</i>'
                    for i, middle in enumerate(middles, 1))
    return f"""<section><h2>Where in the film</h2>
<p>Every bar is a shot, and the higher it is, the less sure its colours are. Numbers mark the frames to colour next.</p>
<div class="timeline"><svg viewBox="0 0 1000 64" preserveAspectRatio="none">{"".join(bars)}</svg>
<div class="marks">{marks}</div><div class="ends"><span>{_time(start)}</span><span>{_time(end)}</span></div></div>
</section>
"""


def _next(suggestions, width, folder):
    if not suggestions:
        return ""
    cards = []
    for i, suggestion in enumerate(suggestions, 1):
        shot, others = suggestion.shot, [i + 1 for i in suggestion.helped if i != suggestion.shot.index]
        helps = ", ".join(f'<a href="#shot-{number}">{number}</a>' for number in others[:LINKS])
        if len(others) > LINKS:
            helps += f" and {len(others) - LINKS} more"
        if helps:
            helps = f", also in shot{'s' if len(others) > 1 else ''} {helps}"
        cards.append(f'<figure>{_image(shot.grey, width, f"frame {suggestion.frame}, grey")}<figcaption>'
                     f'<b class="number">{i}</b> <a href="#shot-{shot.index + 1}">Shot {shot.index + 1}</a>, '
                     f'{_time((shot.start_time + shot.end_time) / 2)}<br>'
                     f'<span>{suggestion.gain:.0%} of the doubt{helps}</span><br>'
                     f'<code>{escape(suggestion.file_name)}</code></figcaption></figure>')
    share = sum(suggestion.gain for suggestion in suggestions)
    where = ""
    if folder:
        where = f" Paint them in <code>{escape(folder)}</code>, and give that folder to <code>--references</code>."
    return f"""<section><h2>Colour these next</h2>
<p>Coloured by hand, these {len(cards)} frames would settle about {share:.0%} of what is doubtful now.{where}</p>
<div class="next">{"".join(cards)}</div></section>
"""


def _shot(record, width, names, sources):
    number = record.index + 1
    pictures = [("grey", record.grey), ("coloured", record.result), ("truth", record.truth)]
    pictures = "".join(f"<figure>{_image(picture, width, f'shot {number}, {label}')}<figcaption>{label}</figcaption>"
                       "</figure>" for label, picture in pictures if picture is not None)
    shape = f"aspect-ratio:{record.grey.shape[1]}/{record.grey.shape[0]}"
    slots = "".join(
        f'<figure><div style="{shape}">{sources.get(i, "")}</div><figcaption><b>{score:.2f}</b> '
        f'<span>{escape(str(names.get(i, f"frame {i}")))}</span></figcaption></figure>'
        for i, score in zip(record.slot_ids, record.slot_scores, strict=True))
    slots = f'<h4>Its colours come from</h4><div class="slots">{slots}</div>' if slots else ""
    cdc = f"<span>CDC {_cdc(record.cdc, record.cdc_truth)}</span>" if math.isfinite(record.cdc) else ""
    return f"""<article id="shot-{number}" style="--c:{_certainty(record):.3f}">
<h3>Shot {number}</h3><p><span class="confidence">{_sure(record)}</span>
<span>{_time(record.start_time)} – {_time(record.end_time)}</span>
<span>frames {record.start_frame:,} – {record.end_frame - 1:,}</span>{cdc}</p>
<div class="pictures">{pictures}</div>{slots}
</article>
"""


def _image(rgb, width, alt):
    """An <img> with the picture inside, at most ``width`` wide."""
    width = min(width, rgb.shape[1])
    rgb = resize(rgb, max(1, round(rgb.shape[0] * width / rgb.shape[1])), width)
    data = io.BytesIO()
    Image.fromarray(rgb).save(data, "JPEG", quality=75, optimize=True)
    return (f'<img src="data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}" width="{rgb.shape[1]}" '
            f'height="{rgb.shape[0]}" loading="lazy" decoding="async" alt="{escape(alt)}">')


def _sure(record, before=""):
    """The confidence in words, with something in front of it; nothing where it is unknown."""
    if record.kept:
        return f"{before}in colour already, left as it was"
    return f"{before}{record.confidence:.0%} sure" if math.isfinite(record.confidence) else ""


def _time(seconds):
    """Seconds as 1:02:03.4 or 2:03.4."""
    tenths = round(seconds * 10)
    minutes, tenths = divmod(tenths, 600)
    hours, minutes = divmod(minutes, 60)
    return (f"{hours}:{minutes:02d}" if hours else f"{minutes}") + f":{tenths // 10:02d}.{tenths % 10}"


def _cdc(cdc, truth):
    """CDC, with that of the truth and the ratio of the two where it is known."""
    if not math.isfinite(truth):
        return f"{cdc:.4f}"
    return f"{cdc:.4f} <small>truth {truth:.4f}" + (f", × {cdc / truth:.2f}" if truth else "") + "</small>"


def _hint(text):
    return f'<abbr title="{escape(text)}">?</abbr>'


STYLE = """
:root { color-scheme: light dark; --ground: #f6f5f2; --card: #fff; --ink: #22211f; --soft: #6d6a64; --line: #e2dfd8;
  --accent: #2a62c4; --doubtful: #dd4f12; --certain: #4f8f8b; }
@media (prefers-color-scheme: dark) { :root { --ground: #161619; --card: #212125; --ink: #eae8e3; --soft: #9c9992;
  --line: #36363b; --accent: #8ab4ff; --doubtful: #ff7a3d; --certain: #5fa8a3; } }
* { box-sizing: border-box; margin: 0; }
[style*="--c"] { --sure: color-mix(in oklab, var(--certain) calc(100% * var(--c)), var(--doubtful)); }
body { background: var(--ground); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1160px; margin: auto; padding: 2.5rem 1.25rem; display: grid; gap: 3rem; }
main > * { min-width: 0; }
h1 { font-size: clamp(1.6rem, 5vw, 2.6rem); line-height: 1.15; letter-spacing: -.02em; overflow-wrap: anywhere; }
h2 { font-size: 1.35rem; letter-spacing: -.01em; }
h3 { font-size: 1.05rem; }
h4 { font-size: .8rem; font-weight: 500; color: var(--soft); margin: .9rem 0 .4rem; }
section > p, .facts { color: var(--soft); margin: .25rem 0 1rem; }
.facts span, article p span { margin-right: 1.1em; overflow-wrap: anywhere; }
.facts b { font-weight: 500; color: var(--ink); }
a { color: var(--accent); text-decoration: none; }
a:hover { text-decoration: underline; }
code { font-size: .85em; overflow-wrap: anywhere; display: inline-block; }
small { color: var(--soft); font-size: .8em; font-weight: 400; }
abbr { cursor: help; text-decoration: none; border: 1px solid var(--line); border-radius: 50%; padding: 0 .35em;
  font-size: .85em; }
img { display: block; width: 100%; height: auto; border-radius: 6px; }
dl { display: flex; flex-wrap: wrap; gap: .75rem; margin: 1.25rem 0; }
dl div { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: .6rem 1rem;
  flex: 1 0 auto; }
dd { font-size: 1.5rem; font-weight: 600; font-variant-numeric: tabular-nums; }
dt { color: var(--soft); font-size: .85rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; width: 100%; }
th, td { text-align: right; padding: .35rem .7rem; border-bottom: 1px solid var(--line); font-weight: 500;
  white-space: nowrap; }
th { color: var(--soft); }
th:first-child { text-align: left; }
.timeline svg { display: block; width: 100%; height: 84px; }
.timeline rect { fill: var(--sure); }
.timeline .all { fill: var(--line); opacity: .35; }
.timeline a:hover .all { opacity: 1; }
.marks { position: relative; height: 1.5rem; margin-top: .25rem; }
.marks i { position: absolute; transform: translateX(-50%); font: 600 .72rem/1.3rem system-ui, sans-serif;
  min-width: 1.3rem; text-align: center; }
.marks i, .number { background: var(--accent); color: var(--ground); border-radius: 1em; }
.number { display: inline-block; min-width: 1.6em; text-align: center; }
.ends { display: flex; justify-content: space-between; color: var(--soft); font-size: .8rem; }
.next { display: grid; grid-template-columns: repeat(auto-fill, minmax(200px, 1fr)); gap: 1.1rem; }
figcaption { font-size: .85rem; margin-top: .35rem; }
.next span, .pictures figcaption, .slots span { color: var(--soft); }
article { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  border-left: 5px solid var(--sure); padding: 1rem 1.1rem; margin-top: 1rem;
  scroll-margin-top: 1rem; content-visibility: auto; contain-intrinsic-size: auto 480px; }
article:target { outline: 2px solid var(--accent); }
article p { color: var(--soft); font-variant-numeric: tabular-nums; margin-bottom: .6rem; }
.confidence { color: var(--sure); font-weight: 600; }
.pictures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(260px, 100%), 1fr)); gap: .8rem; }
.slots { display: grid; grid-template-columns: repeat(3, minmax(0, 150px)); gap: .8rem; }
.slots div { background: var(--line); border-radius: 6px; }
.slots img { height: 100%; }
.slots figcaption { overflow-wrap: anywhere; line-height: 1.3; }
@media (max-width: 640px) { main { padding: 1.25rem .8rem; gap: 2rem; } .next { grid-template-columns: 1fr 1fr; }
  .pictures { grid-template-columns: 1fr 1fr; } .pictures figure:nth-child(2) { grid-column: 1 / -1; order: -1; } }
"""

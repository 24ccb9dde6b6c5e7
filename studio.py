"""Where do I correct it by hand? ``python studio.py`` opens a page on this machine: see the colored film, correct a
frame, remember it, and take the film away.

All of a project lies in one folder (``editing/project.py``), and the page shows what is there.
"""

import hmac
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import colorizer.threads  # noqa: F401  before torch is imported
from config import StudioConfig
from editing.export import command, export
from editing.project import Project, open_project
from editing.session import EditingSession
from film.io.video import VIDEO_SUFFIXES
from utils import UserError, list_files, natural_key, read_flags, run_cli

ROOT = Path(__file__).resolve().parent
DEMO_FILM = ROOT / "resources" / "episode_2.mp4"
DEMO_CHECKPOINT = ROOT / "results" / "demo" / "checkpoints" / "best.pt"
MAX_UPLOAD = "8gb"  # of a file that is sent to the page

# ---------------------------------------------------------------------------------------------------------------------
# The page


def answering(function: Callable[..., Any]) -> Callable[..., dict[str, Any]]:
    """``function`` for the page: what the user can mend becomes {"error": sentence}."""
    def answer(data):
        try:
            return function(**data) if isinstance(data, dict) else function()
        except UserError as error:
            return {"error": str(error)}
        except (TypeError, ValueError, KeyError) as error:  # an old page, or something that is none
            return {"error": f"the page asked for something that is not there ({error}); load it again"}

    answer.__name__ = function.__name__  # and no more: Gradio looks at what a function takes
    return answer


def import_gradio() -> Any:
    """Gradio, which sends nothing anywhere. Raises UserError when it is not installed."""
    os.environ.update(GRADIO_ANALYTICS_ENABLED="False", HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1")
    try:
        import gradio
    except ImportError as error:
        raise UserError("the studio needs Gradio; install requirements-studio.txt, as make studio does") from error
    return gradio


def part(gr: Any, name: str, functions: Sequence[Callable[..., Any]]) -> Any:
    """A part of the page that resources/studio/studio.js draws, and what it may ask."""
    return gr.HTML(f'<div class="studio {name}"></div>', container=False, apply_default_css=False,
                   js_on_load=f"window.studio.{name}({{element, server, upload}})",
                   server_functions=[answering(function) for function in functions])


def build_page(desk: EditingSession) -> Any:
    """The page, a gradio.Blocks."""
    gr = import_gradio()
    with gr.Blocks(title="Studio", analytics_enabled=False) as page:
        part(gr, "status", [desk.status, desk.stop, desk.color_again, desk.shots])
        with gr.Tabs() as tabs:
            with gr.Tab("Begin", id="begin"):
                build_begin(gr, desk)
            with gr.Tab("Look", id="look"):
                part(gr, "look", [desk.frame, desk.clip, desk.sources, desk.split, desk.join])
            with gr.Tab("Correct", id="correct"):
                build_correct(gr, desk)
            with gr.Tab("Export", id="export"):
                build_export(gr, desk)
        page.load(lambda: gr.Tabs(selected="look" if desk.project.facts.film else "begin"), None, tabs)
    return page


def saying(gr: Any, function: Callable[..., Any]) -> Callable[..., Any]:
    """``function`` for a button: what the user can mend appears as one sentence."""
    def act(*args):
        try:
            return function(*args)
        except UserError as error:
            raise gr.Error(str(error), print_exception=False) from error

    return act


def build_begin(gr: Any, desk: EditingSession) -> None:
    """Choose the gray film and what is learned, and train."""
    reach, project = desk.project.reach, desk.project

    def offered():
        films = [str(path) for path in reach.files(VIDEO_SUFFIXES) if not path.is_relative_to(project.folder)]
        return films + [str(path) for path in sorted((project.folder / "uploads").glob("*"))
                        if path.suffix.lower() in VIDEO_SUFFIXES]

    def sent(file):
        if file is None:
            raise UserError("there is no file yet; choose one")
        return project.take_upload(file)

    def use(path, file):
        desk.choose_film(sent(file) if file else path or "")

    def teach(path, files, minutes):
        if files:
            colors = sorted((project.take_upload(file) for file in files), key=lambda path: natural_key(path.name))
        else:
            colors = [reach.check(path)] if path else []
        desk.learn(colors, minutes)

    with gr.Row(equal_height=False):
        with gr.Column():
            gr.Markdown("### 1. The gray film")
            film = gr.Dropdown(offered(), value=project.facts.film or None, label="In the folders given at the start",
                               allow_custom_value=True)
            upload = gr.File(label="or send one", file_count="single", type="filepath", height=120)
            gr.Button("Use this film", variant="primary").click(saying(gr, use), [film, upload], None)
        with gr.Column():
            gr.Markdown("### 2. Its colors")
            episode = gr.Dropdown(offered(), value=None, label="A colored episode in the folders given at the start",
                                  allow_custom_value=True)
            colors = gr.File(label="or send an episode, or colored pictures", file_count="multiple", type="filepath",
                             height=120)
            minutes = gr.Slider(2, 60, 10, step=1, label="Minutes of training")
            with gr.Row():
                gr.Button("Learn these colors", variant="primary").click(
                    saying(gr, teach), [episode, colors, minutes], None)
                gr.Button("Good enough").click(lambda: desk.background.stop(), None, None)
    part(gr, "training", [desk.training])


def build_correct(gr: Any, desk: EditingSession) -> None:
    """Correct a frame, and remember it."""
    part(gr, "hand", [desk.hand_open, desk.hand_act, desk.hand_step, desk.hand_remember, desk.hand_save,
                      desk.hand_painted, desk.touched, desk.palette, desk.change_color])
    part(gr, "fixes", [desk.fixes, desk.take_back, desk.change_color])


def build_export(gr: Any, desk: EditingSession) -> None:
    """Take film, checkpoint and references away."""
    def give():
        folder = export(desk.project, desk.predictors)
        told = f"All of it lies in `{folder}`. The same film by the command line:\n\n```\n{command(desk.project)}\n```"
        if desk.project.facts.changes:
            told += "\n\nOnly the studio changes a color everywhere: the command line gives the film without that."
        return [str(path) for path in list_files(folder)], told

    gr.Markdown("The colored film with its sound, the checkpoint with all corrections, the painted frames, the report.")
    button = gr.Button("Export", variant="primary")
    files = gr.File(label="To be taken away", file_count="multiple", interactive=False)
    told = gr.Markdown()
    button.click(saying(gr, give), None, [files, told])


def serve(desk: EditingSession, config: StudioConfig, wait: bool = True) -> Any:
    """Open the page; returns the running gradio.Blocks, at once if not to ``wait``. Raises UserError when the port is
    taken, and for another host without a password."""
    gr = import_gradio()
    password = os.environ.get("STUDIO_PASSWORD", "")
    local = config.host in ("127.0.0.1", "localhost", "::1")
    if not local and not password:
        raise UserError(f"--host {config.host} lets others in; set a password in the environment variable "
                        "STUDIO_PASSWORD")
    kept = desk.project.folder / "page"  # what Gradio keeps of uploads
    if kept.exists():
        shutil.rmtree(kept)
    os.environ["GRADIO_TEMP_DIR"] = str(kept)
    folder = ROOT / "resources" / "studio"
    page, script = build_page(desk), (folder / "studio.js").read_text(encoding="utf-8")
    check = (lambda _, given: hmac.compare_digest(given.encode(), password.encode())) if password else None
    try:
        page.queue().launch(
            server_name=config.host, server_port=config.port, share=False, quiet=True, auth=check, inbrowser=False,
            prevent_thread_lock=True, max_file_size=MAX_UPLOAD, ssr_mode=False, show_error=True,
            allowed_paths=[str(desk.project.folder / "export")], head=f"<script>{script}</script>",
            css_paths=[folder / "studio.css"], footer_links=[], enable_monitoring=False,
            theme=gr.themes.Base(primary_hue="neutral", neutral_hue="neutral", font=["system-ui", "sans-serif"],
                                 font_mono=["ui-monospace", "monospace"]))
    except OSError as error:
        raise UserError(f"cannot listen on {config.host}:{config.port} ({error}); choose another --port") from error
    if wait:
        print(f"the studio is open at {page.local_url} ; Ctrl-C closes it, and nothing is lost")
        page.block_thread()
    return page


# ---------------------------------------------------------------------------------------------------------------------
# Command line


def prepare(project: Project, config: StudioConfig) -> None:
    """Give a project the film and the checkpoint that the command line names, or those of the demo."""
    film, checkpoint = config.input, config.checkpoint
    if not project.facts.film and film is None:
        film = DEMO_FILM
    if project.checkpoint is None and checkpoint is None and DEMO_CHECKPOINT.exists() and film == DEMO_FILM:
        checkpoint = DEMO_CHECKPOINT
    if film is not None:
        project.choose_film(film)
    if checkpoint is not None:
        project.take_checkpoint(checkpoint)


def main(argv: list[str]) -> None:
    config = StudioConfig(**read_flags(StudioConfig, argv, "Correct a colored film by hand, on a page in a browser."))
    config.check()
    import_gradio()
    given = [*config.folders, *([config.input] if config.input else []), DEMO_FILM.parent]
    with open_project(config.project, given) as project:
        prepare(project, config)
        desk = EditingSession(project)
        desk.open()
        try:
            serve(desk, config)
        finally:
            desk.background.stop(wait=60)


if __name__ == "__main__":
    run_cli(main)

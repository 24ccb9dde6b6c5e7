"""Color a film and correct it in the browser: ``python studio.py`` serves a page on this machine.

The page edits one project, a folder with all data of a film (``editing/project.py``).
"""

import hmac
import os
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import colorizer.threads  # noqa: F401  before torch is imported
from config import StudioConfig
from editing.character_sheets import find_sheets
from editing.export import command_line, export
from editing.film_browser import FilmBrowser, MemoryBrowser
from editing.frame_corrections import FrameCorrections
from editing.palette_editor import PaletteEditor
from editing.project import Project, open_project
from editing.session import CANCEL_TIMEOUT, EditingSession
from fileio.images import IMAGE_SUFFIXES
from film.io.video import VIDEO_SUFFIXES
from utils import UserError, list_files, natural_key, read_flags, run_cli

ROOT = Path(__file__).resolve().parent
DEMO_FILM = ROOT / "resources" / "episode_2.mp4"
DEMO_CHECKPOINT = ROOT / "results" / "demo" / "checkpoints" / "best.pt"
MAX_UPLOAD = "8gb"  # maximum size of an uploaded file

# ---------------------------------------------------------------------------------------------------------------------
# The page


def page_function(function: Callable[..., Any]) -> Callable[..., dict[str, Any]]:
    """Wrap a function for calls by the page: it takes its keyword arguments as one dict, and returns {"error": message}
    instead of raising UserError."""
    def call(data):
        try:
            return (function(**data) if isinstance(data, dict) else function()) or {}
        except UserError as error:
            return {"error": str(error)}
        except (TypeError, ValueError, KeyError) as error:  # a page of a different version, or a forged request
            return {"error": f"the page sent an invalid request ({error}); reload it"}

    call.__name__ = function.__name__  # without the signature, which Gradio would inspect
    return call


def button_function(gr: Any, function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a function for a button: the page shows the message of a UserError."""
    def call(*args):
        try:
            return function(*args)
        except UserError as error:
            raise gr.Error(str(error), print_exception=False) from error

    return call


def import_gradio() -> Any:
    """Import Gradio with telemetry disabled, and return it. Raises UserError if it is not installed."""
    os.environ.update(GRADIO_ANALYTICS_ENABLED="False", HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1")
    try:
        import gradio
    except ImportError as error:
        raise UserError("the studio needs Gradio; run pip install -r requirements-studio.txt") from error
    return gradio


def add_panel(gr: Any, name: str, functions: Sequence[Callable[..., Any]]) -> None:
    """Add a panel, which the scripts in resources/studio draw, and let it call ``functions``."""
    gr.HTML(f'<div class="studio {name}"></div>', container=False, apply_default_css=False,
            js_on_load=f"window.studio.{name}({{element, server, upload}})",
            server_functions=[page_function(function) for function in functions])


def build_page(session: EditingSession) -> Any:
    """Return the page, a gradio.Blocks."""
    gr = import_gradio()
    browser, memory = FilmBrowser(session), MemoryBrowser(session)
    corrections, palette = FrameCorrections(session, browser), PaletteEditor(session, browser)
    with gr.Blocks(title="Studio", analytics_enabled=False) as page:
        add_panel(gr, "status", [session.status, session.cancel, session.color, browser.shots])
        with gr.Tabs():
            with gr.Tab("Setup", id="setup"):
                build_setup(gr, session)
            with gr.Tab("View", id="view"):
                add_panel(gr, "viewer", [browser.frame, browser.clip, memory.sources, session.split_shot,
                                         session.join_shot])
            with gr.Tab("Correct", id="correct"):
                add_panel(gr, "editor", [
                    corrections.open_frame, corrections.edit_frame, corrections.preview_fill,
                    corrections.preview_effect, corrections.add_reference, corrections.download_grayscale,
                    corrections.add_uploaded_reference, palette.show_palette, memory.remembered])
                add_panel(gr, "references", [corrections.list_references, session.remove_reference])
            with gr.Tab("Palette", id="palette"):
                add_panel(gr, "palette", [
                    browser.frame, palette.show_palette, palette.edit_color, palette.rename_character,
                    palette.undo_palette, palette.import_palette, palette.export_palette, palette.preview_color,
                    palette.find_color])
            with gr.Tab("Export", id="export"):
                build_export(gr, session)
    return page


def build_setup(gr: Any, session: EditingSession) -> None:
    """Build the tab that chooses the film and trains a checkpoint."""
    allowed_paths, project = session.project.allowed_paths, session.project

    def videos():
        films = [str(path) for path in allowed_paths.files(VIDEO_SUFFIXES) if not path.is_relative_to(project.folder)]
        return films + [str(path) for path in sorted((project.folder / "uploads").glob("*"))
                        if path.suffix.lower() in VIDEO_SUFFIXES]

    def choose_film(path):
        if path:
            session.choose_film(path)

    def upload_film(upload):
        session.choose_film(project.add_upload(upload))

    def train(path, minutes):
        if path:
            session.train([allowed_paths.check(path)], minutes)

    def train_on_uploads(uploads, minutes):
        session.train(sorted(map(project.add_upload, uploads), key=lambda path: natural_key(path.name)), minutes)

    def train_on_sheets(minutes):
        session.train([], minutes)

    with gr.Row(equal_height=False):
        with gr.Column():
            gr.Markdown("### 1. Grayscale film")
            film = gr.Dropdown(videos(), value=project.settings.film or None, label="Film in the given folders",
                               allow_custom_value=True)
            upload = gr.File(label="or upload a film", file_count="single", type="filepath", height=120)
            film.change(button_function(gr, choose_film), film, None)
            upload.upload(button_function(gr, upload_film), upload, None)
        with gr.Column():
            build_sheets(gr, session)
        with gr.Column():
            gr.Markdown("### 3. Colors: training starts at once")
            minutes = gr.Slider(2, 60, 10, step=1, label="Maximum minutes of training")
            source = gr.Dropdown(videos(), value=None, label="Colored film in the given folders",
                                 allow_custom_value=True)
            uploads = gr.File(label="or upload a colored film or colored pictures", file_count="multiple",
                              type="filepath", height=120)
            source.change(button_function(gr, train), [source, minutes], None)
            uploads.upload(button_function(gr, train_on_uploads), [uploads, minutes], None)
            with gr.Row():
                gr.Button("Train on sheets alone", size="sm", min_width=100).click(
                    button_function(gr, train_on_sheets), minutes, None)
                gr.Button("Stop and use the result", size="sm", min_width=100).click(session.cancel, None, None)
    add_panel(gr, "training", [session.training_progress])


def build_sheets(gr: Any, session: EditingSession) -> None:
    """Build the column that takes character sheets."""
    allowed_paths, project = session.project.allowed_paths, session.project

    def sheet_folders():
        own = [path.parent for path in allowed_paths.files(IMAGE_SUFFIXES) if not path.is_relative_to(project.folder)]
        return sorted(map(str, {*own, *(path.parent for path in own if path not in allowed_paths.roots)}))

    def add_folder(name, path):
        if path:
            session.add_characters(find_sheets(name, allowed_paths.check_folder(path)))
        return "", None  # ready for the next character

    def add_sheets(name, uploads):
        paths = [Path(path) for path in uploads]
        session.add_characters({name or re.sub(r"[\W\d_]+$", "", os.path.commonprefix([path.stem for path in paths])):
                                paths})
        return "", None

    gr.Markdown("### 2. Character sheets, if there are any")
    name = gr.Textbox(label="Name of the character", placeholder="by default that of the folder or file")
    folder = gr.Dropdown(sheet_folders(), value=None, label="Folder with its pictures", allow_custom_value=True)
    sheets = gr.File(label="or upload pictures of one character", file_count="multiple", type="filepath",
                     height=120)
    folder.change(button_function(gr, add_folder), [name, folder], [name, folder])
    sheets.upload(button_function(gr, add_sheets), [name, sheets], [name, sheets])
    add_panel(gr, "sheets", [session.list_characters, session.remove_character])


def build_export(gr: Any, session: EditingSession) -> None:
    """Build the tab that exports the film, the checkpoint and the references."""
    def run_export():
        folder = export(session.project, session.predictors)
        return [str(path) for path in list_files(folder)], (
            f"All files are in `{folder}`. This command colors the same film:\n\n"
            f"```\n{command_line(session.project)}\n```")

    gr.Markdown("The colored film with its sound, the checkpoint with all references, the references and the report.")
    button = gr.Button("Export", variant="primary")
    files = gr.File(label="Exported files", file_count="multiple", interactive=False)
    message = gr.Markdown()
    button.click(button_function(gr, run_export), None, [files, message])


def serve(session: EditingSession, config: StudioConfig, wait: bool = True) -> Any:
    """Serve the page and return its gradio.Blocks; with ``wait``, return only after an interruption.

    Raises UserError if the port is in use, or if the host is not this machine and no password is set.
    """
    gr = import_gradio()
    password = os.environ.get("STUDIO_PASSWORD", "")
    local = config.host in ("127.0.0.1", "localhost", "::1")
    if not local and not password:
        raise UserError(f"--host {config.host} allows access from other machines; set a password in the environment "
                        "variable STUDIO_PASSWORD")
    uploads = session.project.folder / "page"  # temporary files of Gradio
    if uploads.exists():
        shutil.rmtree(uploads)
    os.environ["GRADIO_TEMP_DIR"] = str(uploads)
    folder = ROOT / "resources" / "studio"
    page = build_page(session)
    scripts = (folder / f"{name}.js" for name in ("studio", "viewer", "editor", "palette"))
    script = "".join(path.read_text(encoding="utf-8") for path in scripts)
    check = (lambda _, given: hmac.compare_digest(given.encode(), password.encode())) if password else None
    try:
        page.queue().launch(
            server_name=config.host, server_port=config.port, share=False, quiet=True, auth=check, inbrowser=False,
            prevent_thread_lock=True, max_file_size=MAX_UPLOAD, ssr_mode=False, show_error=True,
            allowed_paths=[str(session.project.folder / "export")], head=f"<script>{script}</script>",
            css_paths=[folder / "studio.css"], footer_links=[], enable_monitoring=False,
            theme=gr.themes.Base(primary_hue="neutral", neutral_hue="neutral", font=["system-ui", "sans-serif"],
                                 font_mono=["ui-monospace", "monospace"]))
    except OSError as error:
        raise UserError(f"cannot listen on {config.host}:{config.port} ({error}); choose another --port") from error
    if wait:
        print(f"the studio is running at {page.local_url} ; press Ctrl-C to stop it, all work is saved")
        page.block_thread()
    return page


# ---------------------------------------------------------------------------------------------------------------------
# Command line


def prepare(project: Project, config: StudioConfig) -> None:
    """Add the film and the checkpoint of the command line, or by default those of the demo, to a project."""
    film, checkpoint = config.input, config.checkpoint
    if not project.settings.film and film is None:
        film = DEMO_FILM
    if project.checkpoint is None and checkpoint is None and DEMO_CHECKPOINT.exists() and film == DEMO_FILM:
        checkpoint = DEMO_CHECKPOINT
    if film is not None:
        project.choose_film(film)
    if checkpoint is not None:
        project.add_checkpoint(checkpoint)


def main(argv: list[str]) -> None:
    config = StudioConfig(**read_flags(StudioConfig, argv, "Color a film and correct it on a page in the browser."))
    config.check()
    import_gradio()
    readable = [*config.folders, *([config.input] if config.input else []), DEMO_FILM.parent]
    with open_project(config.project, readable) as project:
        prepare(project, config)
        session = EditingSession(project)
        session.start()
        try:
            serve(session, config)
        finally:
            session.jobs.cancel(CANCEL_TIMEOUT)


if __name__ == "__main__":
    run_cli(main)

"""Export of a project: the colored film, its checkpoint, references and report, and the equivalent command line."""

import shlex
import shutil
from pathlib import Path

from editing.coloring_job import PredictorCache
from editing.project import Project
from fileio.atomic import link_or_copy
from fileio.outputs import accompanying_path
from film.report.html_report import Report, write_report
from film.report.memory_thumbnails import memory_thumbnails
from utils import UserError


def export(project: Project, predictors: PredictorCache) -> Path:
    """Write the results of a project into its folder export/; return the path of this folder.

    Raises UserError if the film is not colored with all changes.
    """
    records = project.records()
    if records is None or not project.is_current():
        raise UserError("the film is not colored with all changes; color it and export again")
    folder, predictor = project.folder / "export", predictors.with_references()
    references = folder / "references"
    references.mkdir(parents=True, exist_ok=True)
    film = folder / project.colored.name
    film.unlink(missing_ok=True)
    link_or_copy(project.colored, film)
    predictor.save(folder / "better.pt")
    for path in [*references.rglob("frame_*.png"), folder / "references.zip"]:  # of an earlier export
        path.unlink(missing_ok=True)
    for each in project.settings.references:
        (references / each.file).parent.mkdir(exist_ok=True)
        shutil.copyfile(project.references / each.file, references / each.file)
    for source in (project.palette.folder, project.sheets.folder):
        target = folder / source.name
        if target.exists():  # of an earlier export
            shutil.rmtree(target)
        if source.is_dir():
            shutil.copytree(source, target)
    if project.settings.references:
        shutil.make_archive(str(references), "zip", references)
    facts = {"references": str(len(project.settings.references))}
    pictures = memory_thumbnails(predictor.colorizer) if predictor.uses_memory else {}
    write_report(accompanying_path(folder / project.colored.name, "report.html"), Report(
        Path(project.settings.film).name, records, names=predictor.frame_names, thumbnails=pictures, facts=facts,
        response=records.response))
    return folder


def command_line(project: Project) -> str:
    """Return the command that colors the same film with test.py."""
    words = ["python", "test.py", "--checkpoint", str(project.checkpoint), "--input", project.settings.film, "--output",
             project.colored.name]
    for flag, folder in (("--references", project.references), ("--characters", project.sheets.folder),
                         ("--palette", project.palette.folder)):
        if folder.is_dir() and any(folder.iterdir()):
            words += [flag, str(folder)]
    for name in ("cut_at", "join_at"):
        if frames := getattr(project.settings, name):
            words += [f"--{name}", *map(str, frames)]
    return shlex.join(words)

"""What is taken away of a project? The film, the checkpoint and the references, so that the command line goes on."""

import shlex
import shutil
from pathlib import Path

from editing.jobs import PredictorCache
from editing.project import Project
from fileio.atomic import link_or_copy
from film.report.html_report import Report, write_report
from film.report.memory_thumbnails import memory_thumbnails
from utils import UserError


def export(project: Project, predictors: PredictorCache) -> Path:
    """Write what is taken away into the project's folder export/; returns that. The film is the one that test.py writes
    with the same checkpoint and references. Raises UserError before the film is colored."""
    records = project.records()
    if records is None or not project.is_current():
        raise UserError("the film is not colored with all that was changed; color it and export again")
    folder, predictor = project.folder / "export", predictors.corrected()
    references = folder / "references"
    references.mkdir(parents=True, exist_ok=True)
    film = folder / project.colored.name
    film.unlink(missing_ok=True)
    link_or_copy(project.colored, film)
    predictor.save(folder / "better.pt")
    for path in [*references.glob("frame_*.png"), folder / "references.zip"]:  # of an earlier export
        path.unlink(missing_ok=True)
    for each in project.facts.corrections:
        shutil.copyfile(project.references / each.file, references / each.file)
    if project.facts.corrections:
        shutil.make_archive(str(references), "zip", references)
    facts = {"corrections": str(len(project.facts.corrections))}
    pictures = memory_thumbnails(predictor.colorizer) if predictor.uses_memory else {}
    write_report(folder / f"{project.colored.stem}_report.html", Report(
        Path(project.facts.film).name, records, names=predictor.frame_names, thumbnails=pictures, facts=facts,
        response=records.response))
    return folder


def command(project: Project) -> str:
    """The command line that colors the same film."""
    words = ["python", "test.py", "--checkpoint", str(project.checkpoint), "--input", project.facts.film, "--output",
             project.colored.name]
    if project.facts.corrections:
        words += ["--references", str(project.references)]
    for name in ("cut_at", "join_at"):
        if frames := getattr(project.facts, name):
            words += [f"--{name}", *map(str, frames)]
    return shlex.join(words)

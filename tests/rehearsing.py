"""The rehearsal of a run's first request in the tests' own process."""

from fgvc_core.files import private_folder
from fieldmark.client import workspace as works
from fieldmark.client.deployment.dry_run import DryRun
from fieldmark.client.rehearsal import rehearse


def in_this_process(site, recipe, class_names):
    """As :func:`fieldmark.client.deployment.dry_run.dry_run`, without a process and its limits."""
    works.WORKSPACE.forget_data()
    scratch = private_folder(site.home / "state" / "scratch")
    try:
        values = rehearse(site, recipe, class_names, scratch).as_json()
    except Exception as error:
        return DryRun(fault=str(error), exit_code=getattr(error, "exit_code", 6))
    finally:
        for path in sorted(scratch.rglob("*"), reverse=True):
            path.unlink() if path.is_symlink() or path.is_file() else path.rmdir()
    return DryRun(values=values)

"""Patients of DICOM files as subjects, by digests that no output shows.

A subject's name decides its split through a hash and must not depend on other pictures, so it is
made of the patient's id. The id itself is a person's: names are one-way digests, and because ids
are few enough to be tried, even these are shown by the name of a picture instead.
"""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from fgvc_core.data.dicom import patient_of
from fgvc_core.data.file_kinds import is_dicom
from fgvc_core.data.files import first_few
from fgvc_core.data.labels import LeftOut
from fgvc_core.data.passing import refuse_passing
from fgvc_core.data.settings import PATIENT
from fgvc_core.data.soundness import refuse_unsound_file
from fgvc_core.errors import DataError
from fgvc_core.words import counted

WITHOUT = "without a PatientID"

_PREFIX = "patient "


def patients(root: Path, paths: Sequence[str], *, follow_links: bool = False) -> list[str]:
    """Subject of each picture: equal for equal patients; empty where a file names none.

    Args:
        root: The data root.
        paths: Pictures relative to it.
        follow_links: See :class:`~fgvc_core.data.files.FileSource`.

    Raises:
        PassingFault: if the machine is at fault.
    """
    real_root = "/" if follow_links else os.path.realpath(root)
    return [_patient(real_root, root / path) for path in paths]


def _patient(real_root: str, path: Path) -> str:
    try:
        refuse_unsound_file(real_root, path)
        found = patient_of(path) if is_dicom(path) else ""
    except (DataError, OSError) as error:
        refuse_passing(path, error)
        return ""
    if not found:
        return ""
    text = found.encode("utf-8", "surrogatepass")
    return _PREFIX + hashlib.blake2b(text, digest_size=16, person=b"patient").hexdigest()


def subjects_or_left_out(
    root: Path,
    paths: Sequence[str],
    left_out: LeftOut | None,
    *,
    follow_links: bool = False,
) -> tuple[list[str], set[int]]:
    """Subject of each picture, and the positions of those that name none.

    Args:
        root: The data root.
        paths: Pictures relative to it.
        left_out: If given, pictures that name no patient are recorded here instead of raising.
        follow_links: See :class:`~fgvc_core.data.files.FileSource`.

    Raises:
        DataError: without ``left_out``, if pictures name no patient.
        PassingFault: if the machine is at fault.
    """
    found = patients(root, paths, follow_links=follow_links)
    bare = [path for path, subject in zip(paths, found, strict=True) if not subject]
    if bare and left_out is None:
        raise DataError(
            f"{counted(len(bare), 'picture has', 'pictures have')} no PatientID: "
            f"{first_few(bare)}.",
            why=f"data.subject_column = '{PATIENT}' makes the patient of each DICOM file its "
            "subject.",
            remedy="Take them out, or give subjects in a CSV (data.name = 'manifest').",
        )
    for path in bare:
        assert left_out is not None
        left_out.add(WITHOUT, path)
    return found, {at for at, subject in enumerate(found) if not subject}


def shown_names(subjects: Sequence[str], pictures: Sequence[str]) -> dict[str, str]:
    """Subject -> name for people; a patient is called by the first of its pictures."""
    first: dict[str, str] = {}
    for subject, picture in zip(subjects, pictures, strict=True):
        first.setdefault(subject, picture)
    return {
        subject: f"the patient of {picture}" if subject.startswith(_PREFIX) else subject
        for subject, picture in first.items()
    }


def shown_subjects(
    chosen: Sequence[str], subjects: Sequence[str], pictures: Sequence[str]
) -> list[str]:
    """Names of some subjects for people, sorted.

    >>> shown_subjects(["HAM_1", "patient 0a1b"], ["HAM_1", "patient 0a1b"], ["x.jpg", "a/2.dcm"])
    ['HAM_1', 'the patient of a/2.dcm']

    Args:
        chosen: Subjects to name.
        subjects: N subjects of a table.
        pictures: Its N pictures.
    """
    names = shown_names(subjects, pictures)
    return sorted(names[one] for one in chosen)

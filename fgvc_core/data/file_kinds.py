"""Kinds of files in a data tree, by name and first bytes: pictures, formats to add, litter.

Names of litter are those that the systems themselves use: Synology DSM (``@eaDir``, ``#recycle``),
QNAP (``@Recycle``, ``.@__thumb``), Windows (``$RECYCLE.BIN``, ``Thumbs.db``), macOS
(``.DS_Store``, ``__MACOSX``, ``._*``), Linux (``lost+found``, ``.thumbnails``) and Jupyter.
"""

import os
import re
import stat
from importlib.util import find_spec
from pathlib import Path

from PIL import features

from fgvc_core.data.passing import refuse_passing
from fgvc_core.data.unused import (
    LITTER,
    NO_FILE,
    NO_PICTURE,
    OTHER_ENDING,
    UNREADABLE_FILE,
    Reason,
)

PICTURE_ENDINGS = frozenset(
    {
        ".bmp",
        ".dib",
        ".gif",
        ".jfif",
        ".jpe",
        ".jpeg",
        ".jpg",
        ".pgm",
        ".png",
        ".ppm",
        ".tif",
        ".tiff",
        ".webp",
        *((".avif", ".avifs") if features.check("avif") else ()),
    }
)
"""Endings of files that are read as pictures, in lower case."""

_HEIC_ENDINGS = frozenset({".heic", ".heics", ".heif", ".heifs", ".hif"})
DICOM_ENDINGS = frozenset({".dcm", ".dicom"})
"""Endings of DICOM files; many have none, or a number, and are told by their bytes."""

MARK_BYTES = 132
"""Bytes from the beginning of a file that are looked at to tell its format."""

_CONVERT = "Convert them to JPEG, PNG or TIFF."
_FRAMES = "Cut frames out of them first, for instance with ffmpeg."
_TILES = (
    "Cut whole-slide pictures into tiles first: 'vips dzsave SLIDE.svs TILES --tile-size 512 "
    "--overlap 0 --depth one --suffix .png' (libvips reads them through OpenSlide); then put the "
    "tiles into class folders, or list them in a CSV with the slide or patient as subject."
)
_DEVELOP = "Develop them to TIFF or JPEG first, for instance with dcraw or darktable-cli."
_EXTRA = "Install the extra: pip install 'fieldmark[formats]'."


def _format(name: str, remedy: str) -> Reason:
    return Reason(f"in a format that is not read here ({name})", True, remedy)


_FORMATS = {
    _format("HEIC", _EXTRA): ".heic .heif .hif .heics .heifs",
    _format("AVIF", "Install a Pillow with AVIF (11.3 or later)."): ".avif .avifs",
    _format("DICOM", _EXTRA): ".dcm .dicom",
    _format("JPEG 2000", _CONVERT): ".jp2 .j2k .jpf .jpx .j2c",
    _format("JPEG XL", _CONVERT): ".jxl",
    _format("camera raw", _DEVELOP): ".arw .cr2 .cr3 .crw .dng .nef .nrw .orf .pef .raf .raw .rw2 "
    ".srw",
    _format("whole slide", _TILES): ".bif .czi .mrxs .ndpi .scn .svs .svslide .vms .vsi",
    _format("video", _FRAMES): ".avi .m4v .mkv .mov .mp4 .mpeg .mpg .mts .webm .wmv",
    _format("volume", "Write its slices as PNG or TIFF."): ".mha .mhd .nii .nii.gz .nrrd",
    _format("design file", _CONVERT): ".ai .eps .icns .ico .pcx .psd .svg .tga .xcf",
    _format("floating point", _CONVERT): ".exr .hdr .pfm",
}
_BY_ENDING = {ending: reason for reason, endings in _FORMATS.items() for ending in endings.split()}

_LITTER_FOLDERS = frozenset(
    [
        "@eadir",
        "@recycle",
        "@recently-snapshot",
        "@synoresource",
        "@tmp",
        "#recycle",
        "#snapshot",
        "$recycle.bin",
        "recycler",
        "recycled",
        "lost+found",
        "__macosx",
        "__pycache__",
        ".thumbnails",
        ".@__thumb",
        ".appledouble",
        ".ipynb_checkpoints",
        ".trash",
        ".trashes",
        ".spotlight-v100",
        ".fseventsd",
        ".temporaryitems",
        ".git",
        ".dvc",
        ".picasaoriginals",
        "system volume information",
        "network trash folder",
        "recycle bin",
        "recyclebin",
        "thumbnail",
        "thumbnails",
        "temporary items",
        "_gsdata_",
        "_vti_cnf",
        "~snapshot",
        "node_modules",
        "@thumb",
        "_thumb",
        "_thumbs",
        "_thumbnails",
        "previews.lrdata",
        "thumbnails.lrdata",
    ]
)
_LITTER_FILES = frozenset(
    [
        "thumbs.db",
        "ehthumbs.db",
        "ehthumbs_vista.db",
        "desktop.ini",
        "picasa.ini",
        ".picasa.ini",
        ".ds_store",
        ".nomedia",
        "icon\r",
        ".localized",
        ".directory",
        "zbthumbnail.info",
    ]
)
_LITTER_NAME = re.compile(
    r"\._.*|@(__thumb|appstore|docker|sharebin|sharesnap|upload_cache)|.*@SynoEAStream"
    r"|found\.\d{3}|SYNO(PHOTO|FILE|VIDEO)_.*|\.trash-\d+|~\$.*"
    # Lightroom's, Capture One's and Apple's libraries of previews.
    r"|.*\.(lrdata|lrcat-data|cocatalogdb|photoslibrary|aplibrary)",
    re.IGNORECASE,
)

_OTHER = frozenset(
    [
        ".bin",
        ".bz2",
        ".cfg",
        ".csv",
        ".db",
        ".doc",
        ".docx",
        ".gz",
        ".h5",
        ".htm",
        ".html",
        ".ini",
        ".ipynb",
        ".json",
        ".jsonl",
        ".lock",
        ".log",
        ".mat",
        ".md",
        ".npy",
        ".npz",
        ".ods",
        ".parquet",
        ".pdf",
        ".pkl",
        ".ppt",
        ".pptx",
        ".py",
        ".rar",
        ".rst",
        ".sh",
        ".sqlite",
        ".tab",
        ".tar",
        ".toml",
        ".tsv",
        ".txt",
        ".xls",
        ".xlsx",
        ".xml",
        ".yaml",
        ".yml",
        ".zip",
        ".7z",
        ".url",
        ".lnk",
        ".exe",
        ".part",
        ".crdownload",
        ".aae",
        ".xmp",
        ".pto",
        ".pt",
        ".pth",
        ".safetensors",
        ".tex",
        ".geojson",
        ".kml",
        ".gpx",
        ".wav",
        ".mp3",
        ".rtf",
        ".mtl",
        ".obj",
    ]
)
"""Endings of files that hold something else; their bytes are not looked at."""

_MAGIC = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|GIF8[79]a|BM.{12}|II\*\0|MM\0\*|RIFF.{4}WEBP|P[2356]\s",
    re.DOTALL,
)
_BRAND = re.compile(rb".{4}ftyp(?P<brand>.{4})", re.DOTALL)
_HEIC = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")
_AVIF = (b"avif", b"avis")


def litter(name: str) -> bool:
    """Whether a file or folder is written by a system rather than a person."""
    low = name.casefold()
    return low in _LITTER_FOLDERS or low in _LITTER_FILES or bool(_LITTER_NAME.fullmatch(name))


def looks_like_picture(name: str) -> bool:
    """Whether people mean a file of this name as a picture, readable here or not."""
    ending = Path(name).suffix.lower()
    return ending in PICTURE_ENDINGS or ending in _BY_ENDING


def unused_file(path: str) -> Reason | None:
    """Why a file is not read as a picture; None if it is.

    The name decides where its ending is a picture's. A file without an ending, or with the ending
    of a format that is not read here, is a picture if its first bytes are (phones and content
    networks write JPEG under other names).
    """
    name = os.path.basename(path)
    ending = Path(name).suffix.lower()
    if ending in PICTURE_ENDINGS or ending in readable_extras():
        return None
    if name.upper() == "DICOMDIR":
        return NO_PICTURE
    if name.casefold().endswith(".nii.gz"):
        return _BY_ENDING[".nii.gz"]
    if ending in _OTHER:
        return NO_PICTURE
    try:
        # Opening a pipe would wait for a writer for ever.
        if not stat.S_ISREG(os.stat(path).st_mode):
            return NO_FILE
        with open(path, "rb") as file:
            start = file.read(MARK_BYTES)
    except (OSError, ValueError) as error:
        refuse_passing(path, error)
        return UNREADABLE_FILE if ending in _BY_ENDING or not ending else NO_PICTURE
    known = ending in _BY_ENDING
    if _MAGIC.match(start):
        return None if known or not ending else OTHER_ENDING
    if looks_like_dicom(start):
        return None if ".dcm" in readable_extras() else _BY_ENDING[".dcm"]
    found = _BRAND.match(start)
    if found and not known:
        for ending_of_brand, brands in ((".heic", _HEIC), (".avif", _AVIF)):
            if found["brand"] in brands:
                readable = ending_of_brand in {*PICTURE_ENDINGS, *readable_extras()}
                if readable:
                    return None if not ending else OTHER_ENDING
                return _BY_ENDING[ending_of_brand]
    return _BY_ENDING.get(ending, NO_PICTURE)


def format_of(start: bytes) -> str:
    """Name of a format that is not read here, by a file's first bytes; empty if unknown.

    >>> format_of(bytes(4) + b"ftypheic" + bytes(4))
    'HEIC'
    """
    found = _BRAND.match(start)
    if found and found["brand"] in _HEIC:
        return "HEIC"
    if found and found["brand"] in _AVIF:
        return "AVIF"
    if looks_like_dicom(start):
        return "DICOM"
    if start[4:12] == b"JXL \r\n\x87\n" or start.startswith(b"\xff\x0a"):
        return "JPEG XL"
    if start[4:12] == b"jP  \r\n\x87\n" or start.startswith(b"\xff\x4f\xff\x51"):
        return "JPEG 2000"
    return ""


def what_it_is(start: bytes) -> tuple[str, str]:
    """(what a file is, what to do) if it is no picture and its first bytes say so; else empty.

    >>> what_it_is(b"")[0], what_it_is(b"<!DOCTYPE html><html>")[0]
    ('it is empty', 'it is a web page')
    """
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not start:
        return "it is empty", "Copy it again or remove it."
    if start.startswith(b"version https://git-lfs"):
        return "it is a pointer of Git LFS", "Fetch the pictures with 'git lfs pull'."
    if text.startswith((b"<!doctype html", b"<html")):
        return "it is a web page", "Download the picture again; the page may say what was wrong."
    if not start.strip(b"\0"):
        return (
            "it begins with zero bytes alone",
            "It may be a placeholder of a cloud drive, or cut short in copying: have it downloaded "
            "in full, or copy it again.",
        )
    name = format_of(start)
    if name:
        ending = {"HEIC": ".heic", "AVIF": ".avif", "DICOM": ".dcm"}.get(name, "")
        readable = ending in PICTURE_ENDINGS or ending in readable_extras()
        remedy = f"Rename it to end in {ending}." if readable else remedy_for(name)
        return f"it is {name} under another's ending", remedy
    return "", ""


def remedy_for(name: str) -> str:
    """What to do about a format that is not read here."""
    return next((r.remedy for r in _FORMATS if r.words.endswith(f"({name})")), _CONVERT)


def readable_extras() -> frozenset[str]:
    """Endings that installed extras add to ``PICTURE_ENDINGS``."""
    heic = _HEIC_ENDINGS if find_spec("pillow_heif") is not None else frozenset()
    return heic | (DICOM_ENDINGS if find_spec("pydicom") is not None else frozenset())


def looks_like_dicom(start: bytes) -> bool:
    """Whether a file that begins with these ``MARK_BYTES`` bytes is DICOM (PS3.10, section 7.1)."""
    return start[128:MARK_BYTES] == b"DICM"


def is_dicom(path: Path) -> bool:
    """Whether a file is to be read as DICOM; one with another picture's ending is not opened.

    Raises:
        OSError: if it cannot be opened.
    """
    ending = path.suffix.lower()
    if ending in PICTURE_ENDINGS or ending in _HEIC_ENDINGS:
        return False
    with path.open("rb") as file:
        return looks_like_dicom(file.read(MARK_BYTES))


__all__ = [
    "DICOM_ENDINGS",
    "LITTER",
    "MARK_BYTES",
    "PICTURE_ENDINGS",
    "format_of",
    "is_dicom",
    "litter",
    "looks_like_dicom",
    "looks_like_picture",
    "readable_extras",
    "remedy_for",
    "unused_file",
    "what_it_is",
]

"""Settings of ``[data]``, ``[partition]`` and ``[augment]``."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator

from fgvc_core.components import AUGMENTATIONS, DATA_SETS, PARTITIONERS
from fgvc_core.configuration import text
from fgvc_core.data.depth import Depth
from fgvc_core.data.reader import Frame
from fgvc_core.registry import OpenSettings, Registry

PATIENT = "dicom:PatientID"
"""Value of ``data.subject_column`` for which the subject is the patient of each DICOM file."""

WITH_PATIENTS = ("coco", "cvat", "folder", "inaturalist", "label-studio", "manifest")
"""Kinds of data for which ``PATIENT`` may be asked."""


class DataSettings(OpenSettings):
    """The data set, its picture size and its class names."""

    chosen = {"name": DATA_SETS}  # noqa: RUF012

    @classmethod
    def missing(cls, values: Mapping[str, Any]) -> Iterator[tuple[Registry[Any], str]]:
        """Nothing: a site reads its own data, whichever data set the coordinator names."""
        return iter(())

    name: str = Field(
        "fieldmarks",
        description="Data set: fieldmarks (embedded), cub, cars, aircraft, ham10000, folder, "
        "manifest, coco, inaturalist, label-studio or cvat.",
        json_schema_extra=text("word"),
    )
    path: str | None = Field(
        None,
        description="Root folder of the data set on this machine; not used by fieldmarks.",
        json_schema_extra=text("root"),
    )
    image_size: int = Field(
        64, ge=16, le=1024, description="Side of the square the model sees, in pixels, 16 to 1024."
    )
    classes: tuple[str, ...] | None = Field(
        None,
        description="Class names in label order; required by folder and manifest in a federation.",
        json_schema_extra=text("label"),
    )
    label_map: dict[str, str] = Field(
        default_factory=dict,
        description="A tree's own label -> class name, where the two differ; '-> none' leaves "
        "pictures with that label out.",
        json_schema_extra=text("label"),
    )
    val_fraction: float = Field(
        0.15,
        ge=0.0,
        le=0.5,
        description="Share of each site's training subjects kept for validation, 0 to 0.5.",
    )
    test_fraction: float = Field(
        0.25,
        ge=0.0,
        le=0.9,
        description="Share of subjects held out for test where a data set publishes no split, "
        "0 to 0.9; 0: none.",
    )
    test_rule: Literal["stratified", "hashed"] = Field(
        "stratified",
        description="How these subjects are chosen. stratified: the share of each class, rounded, "
        "and at least one subject of a class that has two. hashed: each subject by the hash of its "
        "name alone, so that none is moved when others are added; always so for ham10000.",
    )
    folders: Literal["auto", "classes", "splits"] = Field(
        "auto",
        description="For folder: whether the folders directly below data.path are classes or "
        "splits (train, val, test, pool). auto: told from their names, looking through folders "
        "that wrap the tree and numbered parts.",
    )
    crop: Literal["none", "box"] = Field(
        "none",
        description="box: cut each subject out by its box before the square is made; several boxes "
        "of a picture are several examples of one subject. Boxes are the data set's own (cub, "
        "cars, aircraft, coco), a manifest's columns x, y, width, height, or those of data.boxes.",
    )
    crop_margin: float = Field(
        0.1,
        ge=0.0,
        le=1.0,
        description="crop = box: room on each side, as a share of the box's longer side, 0 to 1.",
    )
    boxes: str | None = Field(
        None,
        description="crop = box: a JSON of boxes relative to data.path, as MegaDetector or COCO "
        "write it.",
        json_schema_extra=text("inside"),
    )
    box_confidence: float = Field(
        0.2, ge=0.0, le=1.0, description="Least confidence of a detection in data.boxes, 0 to 1."
    )
    box_category: str | None = Field(
        None,
        description="The only category of data.boxes to take, for instance 'animal'; all without.",
        json_schema_extra=text("label"),
    )
    depth: Literal["refuse", "scale", "percentile", "window"] = Field(
        "refuse",
        description="Pictures of more than 8 bits a channel: refuse; scale: 0 to 2^depth_bits - 1 "
        "becomes 0..255; percentile: each picture's own 0.5th and 99.5th percentile; window: "
        "depth_window, in the files' units.",
    )
    depth_bits: int = Field(
        16,
        ge=9,
        le=16,
        description="depth = scale: bits that hold values, 9 to 16; 12 for many cameras.",
    )
    depth_window: tuple[float, float] = Field(
        (32768.0, 65536.0), description="depth = window: center and width, width above 0."
    )
    frame: Frame = Field(
        "first",
        description="Which frame of an animation, a stack or a file of several pages is read: "
        "first, middle or last; the others are counted and not read.",
    )
    max_left_out: float = Field(
        0.01,
        ge=0.0,
        le=1.0,
        description="Largest share of the pictures below data.path that may be lost (not listable, "
        "in a format that is not read, behind a link that leads out, in no class folder), 0 to 1; "
        "more, or a whole class, is a fault. At 1 anything may be.",
    )
    follow_links: bool = Field(
        False,
        description="Follow links that lead out of data.path. Not a recipe's to set: a site says "
        "so in its site.toml, a person at a command with FIELDMARK_FOLLOW_LINKS=1.",
    )
    level: Literal["variant", "family", "manufacturer"] = Field(
        "variant", description="For aircraft: what a class is; coarser levels are its taxonomy."
    )
    manifest: str = Field(
        "manifest.csv",
        description="For manifest: the CSV's path, relative to data.path; also the name of a JSON, "
        "CSV or XML of annotations.",
        json_schema_extra=text("inside"),
    )
    path_column: str = Field(
        "path",
        description="For manifest: the column of picture paths.",
        json_schema_extra=text("label"),
    )
    path_template: str = Field(
        "{path}",
        description="For manifest: how a value of path_column becomes a path relative to "
        "data.path, for instance 'images/{path}.jpg'.",
        json_schema_extra=text("inside"),
    )
    label_column: str = Field(
        "label", description="For manifest: the column of labels.", json_schema_extra=text("label")
    )
    subject_column: str | None = Field(
        None,
        description="For manifest: the column of subject ids (patient, lesion, animal); "
        "'dicom:PatientID', also for folder and annotation files: the patient of each DICOM file; "
        "pictures of one subject never meet in two splits or sites. Without it a column "
        "named 'subject' is taken, where there is one.",
        json_schema_extra=text("label"),
    )
    split_column: str | None = Field(
        None,
        description="For manifest: the column that says train, test or pool. Without it a "
        "column named 'split' is taken, where there is one.",
        json_schema_extra=text("label"),
    )
    site_column: str | None = Field(
        None,
        description="For a manifest of several sites: the column that says whose a picture is; "
        "lines of others are passed over before anything in them is looked at.",
        json_schema_extra=text("label"),
    )
    site_value: str | None = Field(
        None,
        description="The value in site_column whose lines are read.",
        json_schema_extra=text("label"),
    )
    public: bool | None = Field(
        None,
        description="Whether a run's report may show pictures of the test split. By default those "
        "of the embedded and the published sets, and none of a folder's or a manifest's.",
    )
    fieldmarks_seed: int = Field(
        2026, ge=0, description="Seed of the embedded data set's pictures (another seed: others)."
    )
    fieldmarks_train: int = Field(
        1500, ge=10, le=200_000, description="Embedded set: labeled training pictures."
    )
    fieldmarks_test: int = Field(
        500, ge=10, le=200_000, description="Embedded set: labeled test pictures."
    )
    fieldmarks_pool: int = Field(
        0, ge=0, le=200_000, description="Embedded set: unlabeled pictures in the pool."
    )

    @field_validator("classes")
    @classmethod
    def _distinct(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if value is not None and len(set(value)) != len(value):
            raise ValueError("class names must be distinct")
        if value is not None and any(name.strip().startswith("->") for name in value):
            raise ValueError("a class name must not begin with '->', which leaves out")
        return value

    @field_validator("depth_window")
    @classmethod
    def _has_width(cls, value: tuple[float, float]) -> tuple[float, float]:
        if value[1] <= 0:
            raise ValueError("the width must be above 0")
        return value

    @property
    def depth_rule(self) -> Depth | None:
        """How deep pictures are read; None: refused."""
        if self.depth == "refuse":
            return None
        return Depth(self.depth, self.depth_bits, self.depth_window)

    @field_validator("path_template")
    @classmethod
    def _has_place(cls, value: str) -> str:
        if value.count("{path}") != 1:
            raise ValueError("it must hold '{path}' once, for instance 'images/{path}.jpg'")
        return value


class PartitionSettings(OpenSettings):
    """Distribution of the data over the sites of a simulation."""

    chosen = {"scheme": PARTITIONERS}  # noqa: RUF012

    scheme: Annotated[str, AfterValidator(PARTITIONERS.check)] = Field(
        "iid",
        description="iid, dirichlet (label skew), pathological (k classes a site), "
        "quantity (size skew) or column (one site per value of a column).",
        json_schema_extra=text("word"),
    )
    sites: int = Field(5, ge=1, le=100_000, description="Number of sites, 1 to 100,000.")
    alpha: float = Field(
        0.5,
        gt=0.0,
        description="Dirichlet concentration (dirichlet, quantity); small means very unequal.",
    )
    classes_per_site: int = Field(
        2, ge=1, description="For pathological: how many classes each site holds."
    )
    column: str | None = Field(
        None,
        description="For column: which column of the table names the site.",
        json_schema_extra=text("label"),
    )
    unseen: tuple[str, ...] = Field(
        (),
        description="Class names of which no site gets a training picture: the test split keeps "
        "them, for train.start = 'semantic' to name.",
        json_schema_extra=text("label"),
    )
    min_examples: int = Field(
        2, ge=1, description="Fewest training examples a site may hold; a draw below it is redone."
    )


class AugmentSettings(OpenSettings):
    """Random augmentation of training pictures; validation and test are not augmented."""

    added = AUGMENTATIONS

    rotation: float = Field(
        15.0, ge=0.0, le=180.0, description="Largest rotation either way, in degrees, 0 to 180."
    )
    zoom: float = Field(
        0.15, ge=0.0, lt=1.0, description="Largest relative zoom in or out, 0 to 1."
    )
    flip: bool = Field(True, description="Mirror left and right half of the time.")
    flip_vertical: bool = Field(
        False,
        description="Mirror top and bottom half of the time, for pictures without an upper side.",
    )
    color: float = Field(
        0.2,
        ge=0.0,
        le=1.0,
        description="Largest relative change of brightness, contrast and saturation, 0 to 1.",
    )
    erasing: float = Field(
        0.0,
        ge=0.0,
        le=1.0,
        description="Share of pictures in which a rectangle becomes noise (Zhong et al. 2020, "
        "https://arxiv.org/abs/1708.04896), 0 to 1.",
    )
    trivial: bool = Field(
        False,
        description="One random operation at a random strength first (Müller and Hutter 2021, "
        "https://arxiv.org/abs/2103.10158).",
    )
    mix: Literal["none", "mixup", "cutmix", "both"] = Field(
        "none",
        description="Mix pictures and labels in pairs: mixup (https://arxiv.org/abs/1710.09412), "
        "cutmix (https://arxiv.org/abs/1905.04899), or one of both for each batch. Couples "
        "examples: not under [privacy].",
    )
    mix_alpha: float = Field(
        0.4, gt=0.0, le=10.0, description="mix: both parameters of the Beta distribution, 0 to 10."
    )
    mix_share: float = Field(
        0.5, ge=0.0, le=1.0, description="mix: share of batches that are mixed, 0 to 1."
    )
    cached_views: int = Field(
        4,
        ge=0,
        le=64,
        description="Where model.train names a stage, the map in front of it is computed once and "
        "kept on disk: of the picture and its mirror images if nothing else varies, or else of so "
        "many random views, 1 to 64. 0: none is kept, and each step computes the whole network "
        "on fresh views.",
    )
    mirror_maps: bool = Field(
        False,
        description="Where maps are kept and nothing but mirroring varies: mirror the picture's "
        "own map in training, in place of keeping one of each mirror image. A half or a quarter "
        "of the work and the room; a mirrored map is only like the map of a mirrored picture.",
    )

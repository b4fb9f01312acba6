"""No setting of a recipe that travels makes a site open a file by its path."""

import typing

import pytest
from pydantic import BaseModel

from fgvc_core.configuration import Text, leads_out, refuse_paths, texts_of
from fgvc_core.errors import PolicyRefusal
from fgvc_core.recipe import Recipe, parse_recipe

OUTSIDE = ["/etc/passwd", "../others/x", "a/../../x", "~/x", "~root", r"C:\x", "C:/x", "c:x",
           r"..\x", r"\\server\share", "a\0b"]  # fmt: skip


def text_fields(cls=Recipe, prefix=""):
    """(full name, what its text is, whether a pattern bounds it) of each setting with free text."""
    for name, field in cls.model_fields.items():
        for model in _models(field.annotation):
            yield from text_fields(model, f"{prefix}{name}.")
        if _holds_text(field.annotation):
            extra = field.json_schema_extra or {}
            bounded = any(getattr(one, "pattern", None) for one in field.metadata)
            yield f"{prefix}{name}", extra.get("text"), bounded


def _holds_text(annotation):
    if annotation is str:
        return True
    if typing.get_origin(annotation) is typing.Literal:
        return False
    return any(_holds_text(one) for one in typing.get_args(annotation))


def _models(annotation):
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for one in typing.get_args(annotation) for model in _models(one)]


FIELDS = list(text_fields())


def test_every_text_of_a_recipe_says_what_it_is():
    assert len(FIELDS) > 15
    for name, kind, bounded in FIELDS:
        assert bounded or kind in typing.get_args(Text), f"{name} needs json_schema_extra=text(...)"


def with_text(name, value):
    """A recipe with a text in one setting, as a coordinator could write it: unchecked."""
    recipe = parse_recipe("", ["privacy.epsilon=1.0", "privacy.method=gradients"])
    return changed(recipe, name.split("."), value)


def changed(settings, path, value):
    """Settings with a text in the setting at a path of names."""
    field, *below = path
    was = type(settings).model_fields[field].annotation
    if below:
        inner = getattr(settings, field) or _models(was)[0]()
        return settings.model_copy(update={field: changed(inner, below, value)})
    shapes = {"dict": {value: "x"}, "tuple": (value,)}
    new = next((shape for kind, shape in shapes.items() if kind in str(was)), value)
    return settings.model_copy(update={field: new})


@pytest.mark.parametrize("value", OUTSIDE)
@pytest.mark.parametrize(("name", "kind"), [(n, k) for n, k, _ in FIELDS])
def test_no_setting_that_may_be_opened_leads_out_whatever_it_is_called(name, kind, value):
    recipe = with_text(name, value)
    if kind in ("label", "weights"):
        # A class may be called as it likes: it is compared, and never opened.
        refuse_paths(recipe)
        return
    with pytest.raises(PolicyRefusal) as caught:
        refuse_paths(recipe)
    assert caught.value.what.startswith(f"{name} = ")
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("setting", "fits"),
    [
        ("data.manifest=deep/./list..csv", True),
        ("data.path_template=images/{path}.jpg", True),
        ("data.path_template=a/{path}/..", False),
        ("data.path=pictures", False),
        ("data.classes=['Black/white warbler', '../odd', '/x']", True),
        ("data.label_map={'n/a' = 'none'}", True),
        ("model.backbone=tf_efficientnet_lite0.in1k", True),
        ("model.backbone=local-dir:models/x", False),
        ("federation.local=['*norm*', 'head.*']", True),
        ("model.train=layer4", True),
    ],
)
def test_paths_inside_the_data_and_free_names_are_taken(setting, fits):
    recipe = parse_recipe("", [setting])
    if fits:
        refuse_paths(recipe)
        return
    with pytest.raises(PolicyRefusal, match=setting.partition("=")[0]):
        refuse_paths(recipe)


def test_the_announced_recipe_has_no_data_path_and_the_same_digest():
    recipe = parse_recipe("", ["data.path=/data/birds"])
    refuse_paths(recipe.announced)
    assert recipe.announced.digest == recipe.digest


def test_every_text_of_a_real_recipe_is_found():
    found = {name: value for name, _, value in texts_of(parse_recipe("", ["data.classes=['a']"]))}
    assert found["data.manifest"] == "manifest.csv"
    assert found["data.classes"] == "a"
    assert found["federation.strategy"] == "fedavg"
    assert not leads_out("images/a b.jpg")

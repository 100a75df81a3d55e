"""What ``import featstore`` promises: these names and no others."""

import ast
import dataclasses
import inspect
import pkgutil
from pathlib import Path

import pytest

import featstore
from featstore import errors
from featstore.extraction.config import ExtractConfig, StoreConfig
from tests.conftest import ROOT


def test_all_is_what_is_public() -> None:
    """Every name that __init__ imports is in __all__, and the other way round."""
    body = ast.parse(Path(featstore.__file__).read_text()).body
    # What is imported at first use is named under TYPE_CHECKING.
    body += [inner for node in body if isinstance(node, ast.If) for inner in node.body]
    defined = {
        alias.asname or alias.name
        for node in body
        if isinstance(node, ast.ImportFrom) and node.module != "typing"
        for alias in node.names
    }
    assert sorted(featstore.__all__) == sorted(defined)
    assert all(hasattr(featstore, name) for name in featstore.__all__)
    assert not hasattr(featstore, "another")
    assert set(featstore.__all__) <= set(dir(featstore))


def test_the_public_names() -> None:
    """A name that goes away breaks somebody: this list changes only on purpose, with a line in the changelog."""
    functions = [name for name in featstore.__all__ if inspect.isfunction(getattr(featstore, name))]
    assert functions == [
        "append",
        "convert",
        "create",
        "export",
        "extract",
        "from_arrays",
        "fuse",
        "import_",
        "merge",
        "open",
        "plan",
        "pull",
        "push",
        "read_manifest",
        "repair",
        "requantise",
        "select",
        "shard_table",
        "split",
        "subset",
        "text_table",
        "verify",
    ]
    raised = {
        name
        for name, item in vars(errors).items()
        if isinstance(item, type) and issubclass(item, Exception)
    }
    others = {"FeatureStore", "Manifest", "__version__"}
    assert set(featstore.__all__) == {*functions, *raised, *others}


def test_no_part_of_the_package_hides_a_public_name() -> None:
    """``featstore.extract`` stays the function, whatever is imported below ``featstore``."""
    parts = {item.name for item in pkgutil.iter_modules(featstore.__path__)}
    assert parts & set(featstore.__all__) == set()


def test_settings_of_extract_are_those_of_recipes() -> None:
    """Every argument of ``featstore.extract`` is a setting of a recipe, or one that the docstring explains."""
    arguments = set(inspect.signature(featstore.extract).parameters)
    settings = {item.name for item in dataclasses.fields(ExtractConfig)}
    settings |= {item.name for item in dataclasses.fields(StoreConfig)}
    assert arguments - settings == {"images", "out", "recipe", "progress"}


def test_extract_refuses_unknown_settings(tmp_path: Path) -> None:
    """A name that no recipe knows is a ConfigError that names it, before anything heavy is imported."""
    with pytest.raises(featstore.ConfigError, match="seded"):
        featstore.extract(tmp_path, teacher="x", out=tmp_path / "out", views={"seded": 4})
    with pytest.raises(featstore.ConfigError, match="recipe"):
        featstore.extract(tmp_path)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("images", ["digits", "tars", "hf", "folder", "a/{0..3}.tar"])
def test_kind_of_images(tmp_path: Path, images: str) -> None:
    """The kind of a source follows from what is there."""
    from featstore.sources.config import source_of

    (tmp_path / "tars").mkdir()
    (tmp_path / "tars" / "0.tar").touch()
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "dataset_dict.json").touch()
    if images == "digits":
        assert source_of(images) == {"kind": "digits"}
    else:
        kind = "tars" if images.endswith(".tar") else images
        assert source_of(tmp_path / images) == {"kind": kind, "path": str(tmp_path / images)}


def test_a_function_wants_a_folder_not_a_url() -> None:
    """Functions that need local files name the URL and how to get the store."""
    with pytest.raises(featstore.ConfigError, match=r"s3://bucket/x.*featstore\.pull"):
        featstore.repair("s3://bucket/x")


def test_every_error_is_in_the_tree() -> None:
    """One ``except FeatstoreError`` catches all that we raise on purpose, and the module's docstring lists them."""
    classes = [item for item in vars(errors).values() if isinstance(item, type)]
    raised = [item for item in classes if issubclass(item, Exception)]
    assert len(raised) > 10
    for item in raised:
        assert issubclass(item, featstore.FeatstoreError)
        assert item.__name__ in str(errors.__doc__)
        assert item.__doc__


def test_everything_public_has_a_docstring() -> None:
    """Modules, classes and functions without a leading underscore say what they are."""
    silent = []
    for path in sorted((ROOT / "featstore").rglob("*.py")):
        tree = ast.parse(path.read_text())
        where = path.relative_to(ROOT)
        if ast.get_docstring(tree) is None:
            silent.append(str(where))
        for node in tree.body:
            if not isinstance(node, (ast.FunctionDef, ast.ClassDef)) or node.name.startswith("_"):
                continue
            if ast.get_docstring(node) is None:
                silent.append(f"{where}:{node.lineno} {node.name}")
    assert silent == []

"""What ``import featstore`` promises: these names and no others."""

import ast
from pathlib import Path

import featstore
from tests.conftest import ROOT


def test_all_is_what_is_public() -> None:
    """Every name that __init__ defines or imports is in __all__, and the other way round."""
    defined = set()
    body = ast.parse(Path(featstore.__file__).read_text()).body
    # What is imported at first use is named under TYPE_CHECKING.
    body += [inner for node in body if isinstance(node, ast.If) for inner in node.body]
    for node in body:
        if isinstance(node, ast.ImportFrom) and node.module != "typing":
            defined |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Assign):
            defined |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    defined.discard("__all__")
    assert sorted(featstore.__all__) == sorted(defined)
    assert all(hasattr(featstore, name) for name in featstore.__all__)
    assert not hasattr(featstore, "another")
    assert set(featstore.__all__) <= set(dir(featstore))


def test_the_public_names() -> None:
    """A name that goes away breaks somebody: this list changes only on purpose, with a line in the changelog."""
    assert sorted(featstore.__all__) == [
        "FeatstoreError",
        "FeatureStore",
        "Manifest",
        "__version__",
        "read_manifest",
    ]


def test_every_error_is_in_the_tree() -> None:
    """One ``except FeatstoreError`` catches all that we raise on purpose, and the module's docstring lists them."""
    from featstore import errors

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

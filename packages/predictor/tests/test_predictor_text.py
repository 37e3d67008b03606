"""A damaged or hostile model file raises a typed error and does not end the process."""

from __future__ import annotations

import json
import pickle
import re
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest

from predictor import IntegrityError, ManifestError, Model, ModelTextError
from predictor._model_file import parse_model_text
from predictor.integrity import sha256_of


def refused(text: bytes) -> str:
    """Load *text* with a matching SHA-256, as an attacker who controls both could, and return the error."""
    with pytest.raises(ModelTextError) as caught:
        Model.from_bytes(text, sha256=sha256_of(text))
    return str(caught.value)


def edit(
    text: bytes, pattern: str, replacement: str | Callable[[re.Match[str]], str], *, resize: bool = True
) -> bytes:
    """Replace the first match, then correct `tree_sizes`, so that only the edit can be refused."""
    changed, count = re.subn(pattern, replacement, text.decode(), count=1, flags=re.MULTILINE)
    assert count == 1
    if resize:
        body = changed[changed.index("Tree=0") : changed.index("end of trees")]
        sizes = [len(block) for block in re.split(r"(?m)^(?=Tree=)", body) if block]
        changed = re.sub(r"(?m)^tree_sizes=.*$", "tree_sizes=" + " ".join(map(str, sizes)), changed, count=1)
    return changed.encode()


@pytest.fixture
def good(trained) -> bytes:
    return trained("categories_missing").path.read_bytes()


CORRUPTIONS: dict[str, Callable[[bytes], bytes]] = {
    "cut in the header": lambda t: t[:200],
    "cut in a tree": lambda t: t[: t.index(b"Tree=3") + 90],
    "cut before the end of trees": lambda t: t[: t.index(b"end of trees")],
    "cut in the parameters": lambda t: t[: t.index(b"end of parameters")],
    "cut in the name of the categories": lambda t: t[: t.index(b"_categorical:")],
    "a number grew by one digit": lambda t: t.replace(b"leaf_value=", b"leaf_value=1", 1),
    "carriage returns": lambda t: t.replace(b"\n", b"\r\n"),
    "a tree was dropped": lambda t: t[: t.index(b"Tree=1\n")] + t[t.index(b"Tree=2\n") :],
    "another format version": lambda t: t.replace(b"version=v4", b"version=v9"),
    "empty": lambda t: b"",
}


@pytest.mark.parametrize("damage", CORRUPTIONS)
def test_corruptions_are_refused(good, damage):
    assert "LightGBM text model" in refused(CORRUPTIONS[damage](good))
    assert Model.from_bytes(good, sha256=sha256_of(good)).info.n_trees == 18  # the process still works


HOSTILE = {
    "feature index out of range": (r"^split_feature=\d+", "split_feature=100000000", "outside"),
    "negative feature index": (r"^split_feature=\d+", "split_feature=-1", "outside"),
    "child out of range": (r"^left_child=-?\d+", "left_child=12345", "outside"),
    "child cycle": (r"^left_child=-?\d+", "left_child=0", "cycle"),
    "leaf reached twice": (r"^(left_child=.*) (-\d+)$", r"\1 -1", "twice"),
    "more leaves than values": (r"^num_leaves=\d+", "num_leaves=9", "entries instead of"),
    "absurd number of leaves": (r"^num_leaves=\d+", "num_leaves=999999999", "entries instead of"),
    "no leaf": (r"^num_leaves=\d+", "num_leaves=0", "at least 1"),
    "leaf that is no number": (r"^leaf_value=\S+", "leaf_value=nan", "numbers"),
    "infinite leaf": (r"^leaf_value=\S+", "leaf_value=inf", "finite"),
    "digits with an underscore": (r"^leaf_value=\S+", "leaf_value=1_0", "numbers"),
    "unknown missing type": (r"^decision_type=\d+", "decision_type=14", "outside"),
    "category set that does not exist": (r"^num_cat=\d+", "num_cat=0", "category set"),
    "category set beyond the bits": (r"^cat_boundaries=0 \d+", "cat_boundaries=0 99", "rise|entries"),
    "line missing": (r"^num_cat=\d+\n", "", "missing"),
    "line twice": (r"^shrinkage=1$", "shrinkage=1\nshrinkage=1", "twice"),
    "line without a name": (r"^shrinkage=1$", "shrinkage", "name=value"),
    "shrinkage that is no number": (r"^shrinkage=1$", "shrinkage=x", "numbers"),
    "another number of classes": (r"^num_class=3", "num_class=4", "outputs"),
    "no class": (r"^num_class=3", "num_class=0", "at least 1"),
    "objective with other classes": (r"num_class:3", "num_class:30", "classes"),
    "objective unknown": (r"^objective=multiclass ", "objective=mystery ", "objective"),
    "objective option unknown": (r"num_class:3", "num_class:3 a=b", "more than one"),
    "objective option from elsewhere": (r"num_class:3", "num_class:3 colour:1", "option"),
    "objective without its classes": (
        r"^objective=multiclass num_class:3",
        "objective=multiclass",
        "name its classes",
    ),
    "objective of one score with three": (
        r"^objective=multiclass num_class:3",
        "objective=binary",
        "one score",
    ),
    "sigmoid of zero": (
        r"^objective=multiclass num_class:3",
        "objective=multiclassova num_class:3 sigmoid:0",
        "sigmoid must be",
    ),
    "sigmoid that is no number": (
        r"^objective=multiclass num_class:3",
        "objective=multiclassova num_class:3 sigmoid:-e-",
        "sigmoid must be",
    ),
    "constraints that are none": (r"^tree_sizes", "monotone_constraints=5\ntree_sizes", "monotone"),
    "header line missing": (r"^label_index=0\n", "", "missing"),
    "text that is not ASCII": (r"^shrinkage=1$", "shrinkage=1\nnote=\u00e9", "tree_sizes|ASCII"),
    "category label that is no label": (
        r"^pandas_categorical:.*$",
        "pandas_categorical:[[null]]",
        "neither text nor a finite number",
    ),
    "parameters before the importances": (r"^feature_importances:$", "importances:", "feature_importances"),
    "tree after the end": (r"^feature_importances:$", "Tree=99\n\nfeature_importances:", "after"),
    "boundaries that fall": (r"^cat_boundaries=0( \d+)+$", lambda m: "cat_boundaries=1" + m[0][16:], "rise"),
    "count that is no number": (r"^num_leaves=\d+", "num_leaves=x", "whole number"),
    "iterations not full": (r"^num_tree_per_iteration=3", "num_tree_per_iteration=0", "at least 1"),
    "wider than its names": (r"^max_feature_idx=4", "max_feature_idx=5", "names"),
    "name twice": (r"^feature_names=a b", "feature_names=a a", "repeated"),
    "infos missing": (r"^feature_infos=\S+ ", "feature_infos=", "feature_infos"),
    "infos of another kind": (r"^feature_infos=\S+ ", "feature_infos=[0:x] ", "feature_infos"),
    "category beyond 32 bits": (r"^(feature_infos=.* -1):", r"\1:4294967296:", "too large"),
    "header line twice": (r"^label_index=0", "label_index=0\nlabel_index=0", "twice"),
    "kind of a feature contradicted": (
        r"(feature_infos=.*) -1:[\d:]+$",
        r"\1 [0.5:11]",
        r"is split by categories, but its feature_infos is \[0\.5:11\]",
    ),
    "line that begins with '='": (r"^label_index=0", "label_index=0\n=objective", "header line ''"),
    "unknown header line": (r"^label_index=0", "label_index=0\nshortcut=1", "header line 'shortcut'"),
    "header line without a name": (r"^label_index=0", "label_index=0\n=tree_sizes=1", "header line ''"),
    "thirty unknown lines before a tree": (
        r"^num_leaves=",
        lambda m: "".join(f"x{i}=1\n" for i in range(30)) + m[0],
        "line 'x0' is not one that LightGBM",
    ),
    "negative label index": (r"^label_index=0", "label_index=-1", "label_index"),
    "negative count": (r"^leaf_count=\d+", "leaf_count=-1", "outside"),
    "count with a fraction": (r"^internal_count=\d+", "internal_count=1.5", "numbers"),
    "hexadecimal threshold": (r"^threshold=\S+", "threshold=0x10", "numbers"),
    "threshold that is no number": (r"^threshold=\S+", "threshold=nan", "numbers"),
    "threshold with a plus": (r"^threshold=\S+", "threshold=+1.5", "numbers"),
    "threshold with a leading zero": (r"^threshold=\S+", "threshold=01.5", "numbers"),
    "threshold without a digit before its point": (r"^threshold=\S+", "threshold=.5", "numbers"),
    "threshold without a digit after its point": (r"^threshold=\S+", "threshold=1.", "numbers"),
    "threshold with two points": (r"^threshold=\S+", "threshold=1.11.1", "numbers"),
    "threshold with two exponents": (r"^threshold=\S+", "threshold=1e11e1", "numbers"),
    "threshold with a decimal comma": (r"^threshold=\S+", "threshold=1,5", "numbers"),
    "threshold in capitals": (r"^threshold=\S+", "threshold=1E5", "numbers"),
    "threshold with an infinity grown on": (r"^threshold=\S+", "threshold=1inf", "numbers"),
    "leaf too large": (r"^leaf_value=\S+", "leaf_value=1e400", "finite"),
    "leaf of 400 digits": (r"^leaf_value=\S+", "leaf_value=" + "9" * 400, "finite"),
    "whole number with a plus": (r"^split_feature=\d+", "split_feature=+1", "numbers"),
    "whole number beyond 64 bits": (r"^split_feature=\d+", "split_feature=" + "9" * 30, "outside"),
    "two spaces": (r"^left_child=(\S+) ", r"left_child=\1  ", "entries"),
    "sign without digits": (r"^left_child=\S+", "left_child=-", "numbers"),
    "NUL byte": (r"^shrinkage=1$", "shrinkage=1\0", "NUL"),
    "early end of trees": (r"^Tree=1$", "end of trees", "fill iterations"),
    "categories that are no JSON": (r"^pandas_categorical:.*$", "pandas_categorical:[[", "JSON"),
    "categories of another shape": (
        r"^pandas_categorical:.*$",
        'pandas_categorical:[{"a": 1}]',
        "list of lists",
    ),
}


@pytest.mark.parametrize("attack", HOSTILE)
def test_hostile_text_is_refused_with_a_reason(good, attack):
    pattern, replacement, reason = HOSTILE[attack]
    complaint = refused(edit(good, pattern, replacement))
    assert re.search(reason, complaint), complaint


@pytest.mark.parametrize("engine", ["", "lightgbm"])
def test_splits_that_share_a_category_set_are_refused(good, engine, monkeypatch):
    """Each such split would take memory for the whole set: a text of 250 KB once took 6 GB."""
    monkeypatch.setenv("PREDICTOR_ENGINE", engine)
    block = next(block for block in good.split(b"\n\n\n") if b"\nnum_cat=2\n" in block)
    kinds = re.search(rb"(?m)^decision_type=(.*)$", block)[1].split(b" ")
    old = re.search(rb"(?m)^threshold=(.*)$", block)[1].split(b" ")
    one, other = (index for index, kind in enumerate(kinds) if int(kind) & 1)
    assert {old[one], old[other]} == {b"0", b"1"}
    new = [old[one] if index == other else number for index, number in enumerate(old)]
    changed = good.replace(block, block.replace(b" ".join(old), b" ".join(new)))
    assert changed != good
    assert "two splits name the same category set" in refused(changed)


def test_wrong_tree_sizes_are_refused(good):
    assert "tree_sizes" in refused(edit(good, r"^tree_sizes=\d+", "tree_sizes=10", resize=False))


def branch(splits: int) -> bytes:
    """A model with one tree that is a single branch."""
    joined = " ".join
    lines = {
        "num_leaves": str(splits + 1),
        "num_cat": "0",
        "split_feature": joined(["0"] * splits),
        "split_gain": joined(["1"] * splits),
        "threshold": joined(map(str, range(splits))),
        "decision_type": joined(["2"] * splits),
        "left_child": joined(str(-leaf) for leaf in range(1, splits + 1)),
        "right_child": joined([*map(str, range(1, splits)), str(-splits - 1)]),
        "leaf_value": joined(map(str, range(splits + 1))),
        "leaf_count": joined(["1"] * (splits + 1)),
        "internal_count": joined(["2"] * splits),
        "shrinkage": "1",
    }
    tree = "Tree=0\n" + "".join(f"{name}={value}\n" for name, value in lines.items()) + "\n\n"
    head = "tree\nversion=v4\nnum_class=1\nnum_tree_per_iteration=1\nlabel_index=0\nmax_feature_idx=0\n"
    head += f"objective=regression\nfeature_names=a\nfeature_infos=[0:1]\ntree_sizes={len(tree)}\n\n"
    return f"{head}{tree}end of trees\n\nfeature_importances:\na=1\n".encode()


def test_branches_deeper_than_4096_splits_are_refused():
    """Contributions recurse along a branch with quadratic memory: 30,000 splits abort the process."""
    longest = branch(4_096)
    model = Model.from_bytes(longest, sha256=sha256_of(longest))
    assert model.predict([[7.0], [1e9]]).tolist() == [7.0, 4_096.0]
    assert model.explain([[7.0]]).raw == pytest.approx([7.0], rel=1e-6)
    assert "a branch of more than 4096 splits" in refused(branch(4_097))


@pytest.mark.parametrize(
    "line", ["leaf_weight", "leaf_count", "internal_value", "internal_weight", "internal_count", "split_gain"]
)
def test_optional_tree_lines_need_one_entry_per_node(good, line):
    assert f"line '{line}' has" in refused(edit(good, rf"^{line}=\S+ ", f"{line}="))


@pytest.mark.parametrize("line", ["leaf_const", "leaf_coeff"])
def test_linear_leaf_lines_with_missing_numbers_are_refused(trained, line):
    text = trained("linear").path.read_bytes()
    assert f"line '{line}' has" in refused(edit(text, rf"(?s)(Tree=5.*?^{line}=)\S+ +", r"\g<1>"))


def test_linear_leaf_features_out_of_range_are_refused(trained):
    text = trained("linear").path.read_bytes()
    last = text.rindex(b"num_features=")
    hostile = text[:last] + re.sub(rb"leaf_features=\d", b"leaf_features=9", text[last:], count=1)
    assert "outside" in refused(hostile)


@pytest.mark.parametrize("line", ["leaf_const", "leaf_coeff"])
@pytest.mark.parametrize("number", ["1e-320", "-2e-308", "1e-400", "inf", "1e400"])
def test_linear_leaf_numbers_outside_normal_float64_are_refused(trained, line, number):
    """LightGBM reads both lines with std::stod, which throws inside a parallel region and aborts the process."""
    text = trained("linear").path.read_bytes()
    assert "subnormal" in refused(edit(text, rf"(?s)(Tree=5.*?^{line}=)\S+", rf"\g<1>{number}"))


def test_errors_name_the_tree(good):
    text = edit(good, r"(?s)(Tree=4.*?)^left_child=-?\d+", r"\1left_child=0")
    with pytest.raises(ModelTextError) as caught:
        parse_model_text(text)
    assert caught.value.tree == 4


def test_parsed_summary_matches_the_booster_of_every_kind(any_model):
    parsed = parse_model_text(any_model.path.read_bytes())
    text = parsed.summary
    assert text.n_trees == any_model.booster.num_trees()
    assert list(text.feature_names) == any_model.booster.feature_name()
    assert list(text.split_counts) == list(any_model.booster.feature_importance("split"))
    split = {text.feature_names[index] for index, count in enumerate(text.split_counts) if count}
    had_missing = {
        name for name, column in zip("abcde", any_model.rows.T, strict=True) if np.isnan(column).any()
    }
    if "zero_as_missing" not in any_model.path.name:
        assert {text.feature_names[index] for index in text.missing} == split & had_missing
    assert parsed.split_gains() == pytest.approx(any_model.booster.feature_importance("gain"), rel=1e-4)


def test_a_pickle_is_never_read(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (tmp_path.joinpath("exploded").write_text, ("boom",))

    path = tmp_path / "model.pkl"
    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ModelTextError, match="pickles"):
        Model.load(path, sha256=sha256_of(path.read_bytes()))
    assert not (tmp_path / "exploded").exists()


def test_a_changed_digit_in_a_leaf_is_refused_by_the_hash(trained):
    text = trained("binary").path.read_bytes()
    at = (
        text.index(b"leaf_value=0.") + len(b"leaf_value=0.")
        if b"leaf_value=0." in text
        else text.index(b"leaf_value=-0.") + 14
    )
    flipped = text[:at] + (b"1" if text[at : at + 1] != b"1" else b"2") + text[at + 1 :]
    assert len(flipped) == len(text)
    parse_model_text(flipped)  # the structure is valid
    with pytest.raises(IntegrityError, match="changed"):
        Model.from_bytes(flipped, manifest=trained("binary").load().manifest)


FUZZ = """
import random, re, sys
import numpy as np
from predictor import Model, ModelError
from predictor.integrity import sha256_of

NUMBERS = b"0 -1 1 2 nan inf -inf 1e400 1e-400 1e-320 99999999 4294967296 -2147483649 0x10 1_0".split() + [b""]

def renumber(text):
    # Replace one number of one line and correct tree_sizes.
    lines = text.split(b"\\n")
    at = chance.choice([i for i, line in enumerate(lines) if b"=" in line and not line.startswith(b"tree_sizes")])
    name, _, values = lines[at].partition(b"=")
    values = values.split(b" ")
    values[chance.randrange(len(values))] = chance.choice(NUMBERS)
    lines[at] = name + b"=" + b" ".join(values)
    head, found, body = b"\\n".join(lines).partition(b"\\nTree=")
    sizes = [len(part) for part in re.split(rb"(?m)^(?=Tree=)", b"Tree=" + body.partition(b"end of trees")[0])[1:]]
    return re.sub(rb"(?m)^tree_sizes=.*", b"tree_sizes=" + b" ".join(b"%d" % n for n in sizes), head) + found + body

survived = 0
for path in sys.argv[2:]:
    good = open(path, "rb").read()
    chance = random.Random(int(sys.argv[1]))
    limit = good.index(b"feature_importances")
    for turn in range(500):
        text = bytearray(renumber(good) if turn % 2 else good)
        for _ in range(0 if turn % 2 else chance.choice((1, 1, 2))):
            at = chance.randrange(limit)
            match chance.randrange(4):
                case 0: text[at] = chance.choice(b"0123456789-. =\\n")
                case 1: del text[at:at + chance.choice((1, 3, 40))]
                case 2: text[at:at] = chance.choice((b"9", b"-", b" 1", b"e9", b"\\n\\n"))
                case 3: text[at] ^= 1 << chance.randrange(7)
        text = bytes(text)
        try:
            model = Model.from_bytes(text, sha256=sha256_of(text))
        except ModelError:
            continue
        rows = np.random.default_rng(0).normal(size=(20, len(model.info.features)))
        model.predict_encoded(rows)
        survived += 1
print("done", survived)
"""


def test_randomly_damaged_files_are_refused_or_predict_without_a_crash(trained):
    """The damaged files have a matching hash; none may abort, hang or crash the process."""
    paths = [str(trained(kind).path) for kind in ("categories_missing", "linear", "one_vs_all")]
    child = subprocess.run(
        [sys.executable, "-c", FUZZ, "5", *paths], capture_output=True, text=True, timeout=100, check=False
    )
    assert child.returncode == 0, child.stderr[-2000:]
    assert child.stdout.startswith("done")
    assert int(child.stdout.split()[1]) > 0  # some damaged files are loaded and predict


def test_model_text_errors_survive_pickling():
    error = pickle.loads(pickle.dumps(ModelTextError("why", tree=3)))
    assert (error.reason, error.tree, str(error)) == ("why", 3, str(ModelTextError("why", tree=3)))


def test_manifest_members_are_named_in_errors(trained, tmp_path):
    subject = trained("binary")
    members = json.loads((subject.path.parent / "binary.txt.manifest.json").read_text())
    members["features"][1]["kind"] = "colour"
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(members))
    with pytest.raises(ManifestError, match=r"features\.1\.kind"):
        Model.load(subject.path, manifest=path)

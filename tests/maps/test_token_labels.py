"""The words of a text's tokens, from the files people have."""

import json

import pytest

from fusecli.errors import FuseError
from fusecli.maps.token_labels import file_of, read_labels


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(name, content):
    data = content if isinstance(content, bytes) else content.encode()
    with open(name, "wb") as file:
        file.write(data)


def dump(name, data):
    write(name, json.dumps(data))


@pytest.mark.parametrize(
    ("content", "labels"),
    [
        ("a\nb\n", ["a", "b"]),
        ("a\nb", ["a", "b"]),
        ("a\r\nb\r\n", ["a", "b"]),
        ("\ufeffa\nb\n", ["a", "b"]),  # as Windows editors begin a file
        ("a\n\n b \n", ["a", "", " b "]),  # an empty token is one, and blanks belong to it
        ("a\u2028b\x0bc\n猫\n", ["a\u2028b\x0bc", "猫"]),  # only a newline ends a token
        ("", []),
    ],
)
def test_a_text_file_has_one_token_a_line(content, labels):
    write("t.txt", content)
    assert read_labels("t.txt", "x.npy", 0, 1) == (labels or [""][:0])


@pytest.mark.parametrize(
    ("data", "named", "text", "labels"),
    [
        (["a", "b"], "t.json", "x.npy", ["a", "b"]),
        ({"tokens": ["a"]}, "t.json", "x.npy", ["a"]),
        ({"cat": ["a"], "dog": ["b"]}, "t.json:dog", "cat.npy", ["b"]),
        ({"cat": {"caption": "A.", "tokens": ["a"]}}, "t.json:cat", "x.npy", ["a"]),
        ({"cat": {"tokens": ["a"]}}, "t.json", "some/cat.text.npy", ["a"]),
        ({"cat": ["a"], "cat.text": ["b"]}, "t.json", "cat.text.npy", ["b"]),
        ({"a:b": ["c"]}, "t.json:a:b", "x.npy", None),
    ],
)
def test_json_may_hold_one_list_or_several_by_name(data, named, text, labels):
    dump("t.json", data)
    if labels is None:
        with pytest.raises(FuseError):
            read_labels(named, text, 0, 1)
    else:
        assert read_labels(named, text, 0, 1) == labels


def test_a_list_of_lists_has_one_for_each_sample():
    dump("t.json", [["a"], ["b"], ["c"]])
    assert read_labels("t.json", "x.npy", 2, 3) == ["c"]
    dump("t.json", {"x": [["a"], ["b"]]})
    assert read_labels("t.json", "x.npy", 1, 2) == ["b"]
    with pytest.raises(FuseError, match=r"t\.json: holds the tokens of 2 texts, expected 3"):
        read_labels("t.json", "x.npy", 1, 3)
    with pytest.raises(FuseError, match=r"t\.json:x: holds the tokens of 2 texts, expected 3"):
        read_labels("t.json:x", "y.npy", 1, 3)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("t.json", "{", "t.json: is not sound JSON"),
        ("t.json", "[" * 100_000, "t.json: is not sound JSON"),
        ("t.json", "3", "t.json: expected a list of tokens, found a number"),
        ("t.json", '"a b"', "t.json: expected a list of tokens, found a string"),
        ("t.json", '["a", 3]', "t.json: token 1 is a number, expected a string"),
        ("t.json", "[null]", "t.json: token 0 is null"),
        ("t.json", '[["a"], "b"]', "t.json: token 0 is a list"),
        ("t.json", '{"cat": ["a"]}', "t.json: has nothing called 'x': say --tokens t.json:NAME"),
        ("t.json", '{"x": {"words": []}}', "t.json: expected a list of tokens, found null"),
        ("t.json", b'["\xff"]', "t.json: is not UTF-8 text"),
        ("t.txt", b"\xff\n", "t.txt: is not UTF-8 text"),
        ("t.csv", "a", "t.csv: tokens are read from .txt (one a line) or .json (a list)"),
        ("t.json:x", '{"x": ["a", 3]}', "t.json:x: token 1 is a number, expected a string"),
        ("t.json:x", '{"x": {}}', "t.json:x: expected a list of tokens, found null"),
        ("t.json:cat", '["a"]', "t.json: holds a list, and a list has nothing called 'cat'"),
    ],
)
def test_anything_else_is_said_in_one_line(name, content, says):
    write(name.partition(":")[0], content)
    with pytest.raises(FuseError) as refused:
        read_labels(name, "x.npy", 0, 1)
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_text_from_stdin_has_no_name_to_look_up():
    dump("t.json", {"b": ["a"], "a": ["b"]})
    with pytest.raises(FuseError, match=r"holds several texts: .* there are a, b"):
        read_labels("t.json", "-", 0, 1)


def test_a_file_of_that_name_comes_first():
    dump("t.json", ["whole"])
    assert file_of("t.json:x") == "t.json"
    assert file_of("t.txt:x") == "t.txt:x"
    dump("t.json:x.json", ["odd"])
    assert file_of("t.json:x.json") == "t.json:x.json"
    assert read_labels("t.json:x.json", "x.npy", 0, 1) == ["odd"]


def test_missing_file_is_said():
    with pytest.raises(FuseError, match=r"t\.txt: no such file"):
        read_labels("t.txt", "x.npy", 0, 1)

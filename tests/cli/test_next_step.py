"""The next step that is printed after a training names the pairs and labels of that training."""

from fusecli.cli.commands.train import _source
from fusecli.cli.pair_groups import PairsToRead
from fusecli.cli.training_groups import LabelColumns


def test_what_was_given_is_said_again_in_words_for_a_shell() -> None:
    pairs = dict.fromkeys(PairsToRead.__dataclass_fields__) | {
        "images": "my images",
        "texts": "texts",
        "image_key": "vit",
        "keyed": False,
        "loose_ids": True,
        "strict_pairs": False,
        "allow_empty_image": False,
        "allow_nonfinite": False,
        "allow_integers": False,
    }
    labels = dict.fromkeys(LabelColumns.__dataclass_fields__) | {"labels": "labels.csv"}
    given = _source(PairsToRead(**pairs), LabelColumns(**labels))
    words = given.replace("'my images'", "my_images").split()
    assert words[:2] == ["my_images", "texts"]
    assert "--image-key vit" in given
    assert given.endswith("--labels labels.csv")
    assert sorted(words[2:]) == sorted(
        ["--image-key", "vit", "--no-keyed", "--loose-ids", "--labels", "labels.csv"]
    )

"""Parts of the pairs: nothing is shared between them, every class is where it must be."""

import numpy as np
import pytest

from fusecli.errors import PairsError
from fusecli.training.groups import join_groups
from fusecli.training.split import (
    all_for_training,
    default_share,
    inner_folds,
    make_folds,
    make_split,
    seen_share,
)
from fusecli.training.targets import IGNORED, Targets


def classes(values, **more):
    values = np.asarray(values, np.int64)
    names = tuple(f"class {number}" for number in range(values.max() + 1))
    return Targets("classify", names, values, **more)


def ids_of(n):
    return tuple(f"pair {number}" for number in range(n))


def parts_of(split):
    return {"train": split.train, "validation": split.validation, "test": split.test}


def refuse_shared(split):
    sides = [set(split.groups[rows].tolist()) for rows in parts_of(split).values()]
    for one in range(3):
        for other in range(one):
            assert not sides[one] & sides[other]


def test_the_default_share_is_that_of_autogluon():
    assert default_share(300) == 0.2
    assert default_share(3_000) == pytest.approx(1 / 6)
    assert default_share(100_000) == 0.1


def test_groups_are_joined_over_images_and_group_names():
    images = ["a", "a", "b", "c", "d", "e", "d"]
    names = ["1", "2", "2", "3", "3", "4", "5"]
    assert join_groups(images, None).tolist() == [0, 0, 1, 2, 3, 4, 3]
    # a-b share the name 2; c-d share the name 3; e stands alone.
    assert join_groups(images, names).tolist() == [0, 0, 0, 1, 1, 2, 1]


def test_a_long_chain_of_links_is_one_group():
    n = 300
    images = [str(number // 2) for number in range(n)]
    names = [str((number + 1) // 2) for number in range(n)]
    assert join_groups(images, names).max() == 0


def test_parts_have_their_shares_and_share_no_group():
    generator = np.random.default_rng(1)
    groups = np.repeat(np.arange(500), generator.integers(1, 6, 500))
    n = len(groups)
    targets = classes(generator.integers(0, 3, n))
    split = make_split(targets, groups, ids_of(n), seed=0)
    refuse_shared(split)
    assert sorted(np.concatenate(list(parts_of(split).values())).tolist()) == list(range(n))
    assert abs(len(split.test) / n - default_share(n)) < 0.01
    assert abs(len(split.validation) / n - default_share(n)) < 0.01


def test_every_part_has_the_classes_in_their_proportion():
    values = np.repeat([0, 1, 2], [700, 200, 100])
    split = make_split(classes(values), np.arange(1000), ids_of(1000), seed=3)
    for rows in parts_of(split).values():
        shares = np.bincount(values[rows], minlength=3) / len(rows)
        np.testing.assert_allclose(shares, [0.7, 0.2, 0.1], atol=0.01)


def test_numbers_are_stratified_by_their_range():
    values = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    split = make_split(Targets("regress", (), values), np.arange(1000), ids_of(1000), seed=0)
    assert abs(values[split.test].mean() - values.mean()) < 0.05
    assert abs(values[split.test].std() - values.std()) < 0.05


def test_another_seed_is_another_split_and_the_same_seed_the_same():
    targets = classes(np.arange(200) % 2)
    splits = [make_split(targets, np.arange(200), ids_of(200), seed=s) for s in (0, 0, 1)]
    assert splits[0].test.tolist() == splits[1].test.tolist()
    assert splits[0].test.tolist() != splits[2].test.tolist()


@pytest.mark.parametrize("seed", range(5))
def test_a_class_of_two_groups_is_always_learnt(seed):
    values = np.r_[np.zeros(100), np.repeat(np.arange(1, 31), 2)].astype(np.int64)
    split = make_split(classes(values), np.arange(160), ids_of(160), seed=seed)
    assert set(values[split.train].tolist()) == set(range(31))


def test_a_rare_label_and_a_rare_tag_are_always_learnt():
    held = np.zeros((100, 3), np.float32)
    held[:, 0] = 1
    held[7, 2] = held[8, 2] = held[:50, 1] = 1
    tags = np.full((100, 4), IGNORED)
    tags[:, :3] = 0
    tags[5, 1] = 1
    for seed in range(5):
        split = make_split(
            Targets("multilabel", ("a", "b", "c"), held), np.arange(100), ids_of(100), seed
        )
        assert held[split.train, 2].any()
        split = make_split(Targets("tag", ("a", "b"), tags), np.arange(100), ids_of(100), seed)
        assert 5 in split.train


def test_one_large_group_is_learnt_from():
    groups = np.r_[np.zeros(60), np.arange(1, 41)].astype(np.int64)
    split = make_split(classes(np.arange(100) % 2), groups, ids_of(100), seed=0)
    assert set(range(60)) <= set(split.train.tolist())
    assert len(split.test) >= 15


def test_three_groups_give_three_parts():
    groups = np.repeat([0, 1, 2], [30, 20, 10])
    split = make_split(classes(np.arange(60) % 2), groups, ids_of(60), seed=0)
    assert all(len(rows) for rows in parts_of(split).values())
    refuse_shared(split)


def test_too_few_pairs_and_groups_are_refused():
    with pytest.raises(PairsError, match=r"at least 20 pairs with labels, found 19 pairs"):
        make_split(classes(np.arange(19) % 2), np.arange(19), ids_of(19), seed=0)
    with pytest.raises(PairsError, match=r"all 40 pairs are in 1 group .*at least 3"):
        make_split(classes(np.arange(40) % 2), np.zeros(40, np.int64), ids_of(40), seed=0)


def test_a_given_split_is_kept():
    given = ("train",) * 60 + ("validation",) * 20 + ("test",) * 20
    targets = classes(np.arange(100) % 2, split=given)
    split = make_split(targets, np.arange(100), ids_of(100), seed=0)
    assert tuple(split.parts()) == given


def test_what_a_given_split_lacks_is_cut_from_training():
    given = ("train",) * 80 + ("test",) * 20
    targets = classes(np.arange(100) % 2, split=given)
    split = make_split(targets, np.arange(100), ids_of(100), seed=0)
    assert split.test.tolist() == list(range(80, 100))
    assert len(split.validation) == 20
    assert len(split.train) == 60


def test_a_class_that_only_the_given_test_part_has_stays_there():
    given = ("train",) * 60 + ("test",) * 20
    targets = classes(np.r_[np.arange(60) % 2, np.full(20, 2)], split=given)
    split = make_split(targets, np.arange(80), ids_of(80), seed=0)
    assert split.test.tolist() == list(range(60, 80))


def test_a_group_on_both_given_sides_is_refused_and_named():
    given = ("train",) * 60 + ("test",) * 40
    targets = classes(np.arange(100) % 2, split=given)
    groups = np.arange(100)
    groups[70] = groups[3]
    with pytest.raises(PairsError, match=r"1 group on two sides.*'pair 3' in train and 'pair 70'"):
        make_split(targets, groups, ids_of(100), seed=0)


def test_folds_hold_out_everybody_once():
    generator = np.random.default_rng(1)
    groups = np.repeat(np.arange(60), generator.integers(1, 4, 60))
    n = len(groups)
    folds = make_folds(classes(generator.integers(0, 2, n)), groups, 5, seed=0)
    assert len(folds) == 5
    assert sorted(np.concatenate([fold.test for fold in folds]).tolist()) == list(range(n))
    for fold in folds:
        refuse_shared(fold)
        assert abs(len(fold.test) - n / 5) < 6
    with pytest.raises(PairsError, match="--folds 5 needs at least 5 groups, found 4"):
        make_folds(classes(np.arange(40) % 2), np.arange(40) % 4, 5, seed=0)


def test_the_last_fit_learns_from_all():
    split = all_for_training(classes(np.arange(50) % 2), np.arange(50), seed=0)
    assert not len(split.test)
    assert len(split.train) + len(split.validation) == 50


def test_inner_folds_leave_the_held_out_part_alone():
    split = make_split(classes(np.arange(100) % 2), np.arange(100) // 2, ids_of(100), seed=0)
    folds = inner_folds(split, classes(np.arange(100) % 2), 4, seed=0)
    learnt = sorted(np.concatenate([split.train, split.validation]).tolist())
    assert sorted(np.concatenate([validation for _, validation in folds]).tolist()) == learnt
    for train, validation in folds:
        assert sorted([*train.tolist(), *validation.tolist()]) == learnt
        assert not set(split.groups[train].tolist()) & set(split.groups[validation].tolist())


def test_the_share_of_held_out_texts_that_were_seen():
    given = ("train",) * 12 + ("validation",) * 4 + ("test",) * 4
    targets = classes(np.arange(20) % 2, split=given)
    split = make_split(targets, np.arange(20), ids_of(20), seed=0)
    texts = [str(number) for number in range(20)]
    assert seen_share(texts, split) == 0
    texts[16], texts[17] = "0", "12"
    assert seen_share(texts, split) == 0.5

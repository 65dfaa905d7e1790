"""Episodes: disjoint, balanced, repeatable, of varying size; class splits; every refusal."""

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from hypercompress.data import ImageData, Preprocess, open_data
from hypercompress.data.embedded import ArrayImages
from hypercompress.data.episodes import (
    Episode,
    Pool,
    draw_places,
    draw_sizes,
    episode_at,
    read_pool,
    sample_episode,
    split_classes,
)
from hypercompress.errors import DataError


def pool_of(counts: list[int]) -> Pool:
    """Class i has counts[i] images and the label 3 i; each image is a number of its own, in a shuffled order."""
    labels = torch.cat([torch.full((count,), 3 * i) for i, count in enumerate(counts)])
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    return Pool("made", torch.arange(len(labels)).float().view(-1, 1, 1, 1), labels[order])


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@settings(max_examples=60)
@given(
    classes=st.integers(2, 8),
    ways=st.integers(2, 8),
    shots=st.integers(1, 6),
    queries=st.integers(1, 6),
    seed=st.integers(0, 10**6),
)
def test_an_episode_is_disjoint_balanced_and_labelled_as_the_pool(
    classes: int, ways: int, shots: int, queries: int, seed: int
) -> None:
    pool, ways = pool_of([shots + queries + i for i in range(classes)]), min(ways, classes)
    episode = sample_episode(pool, ways, shots, queries, seeded(seed))
    support, query = episode.support.flatten().long(), episode.query.flatten().long()
    assert len({*support.tolist(), *query.tolist()}) == ways * (shots + queries), "no image twice"
    assert Counter(episode.support_labels.tolist()) == dict.fromkeys(range(ways), shots)
    assert Counter(episode.query_labels.tolist()) == dict.fromkeys(range(ways), queries)
    assert len(set(episode.classes)) == ways
    classes_of = torch.tensor(episode.classes)
    assert torch.equal(pool.labels[support], classes_of[episode.support_labels])
    assert torch.equal(pool.labels[query], classes_of[episode.query_labels])


def test_the_generator_is_the_only_source_of_chance() -> None:
    pool = pool_of([20] * 6)

    def draw(seed: int, count: int = 1) -> Episode:
        generator = seeded(seed)
        return [sample_episode(pool, 4, 3, 5, generator) for _ in range(count)][-1]

    torch.manual_seed(1)
    first = draw(0)
    torch.manual_seed(2)
    assert torch.equal(first.support, draw(0).support)
    assert torch.equal(first.query, draw(0).query)
    assert not torch.equal(first.support, draw(1).support)
    assert not torch.equal(first.support, draw(0, count=2).support)


def test_every_class_and_image_is_drawn_equally_often() -> None:
    pool, generator = pool_of([5] * 6), seeded(0)
    classes, images = Counter[int](), Counter[float]()
    for _ in range(1200):
        episode = sample_episode(pool, 2, 1, 1, generator)
        classes.update(episode.classes)
        images.update(episode.support.flatten().tolist())
    assert len(classes) == 6
    assert len(images) == 30
    assert max(abs(count - 400) for count in classes.values()) < 5 * (1200 * 1 / 3 * 2 / 3) ** 0.5
    assert max(abs(count - 80) for count in images.values()) < 5 * (1200 * 2 / 30) ** 0.5


def test_places_and_images_are_one_episode() -> None:
    pool = pool_of([9] * 5)
    places = draw_places(pool, 3, 2, 4, seeded(5))
    episode, again = episode_at(pool, places), sample_episode(pool, 3, 2, 4, seeded(5))
    assert torch.equal(episode.support, again.support)
    assert torch.equal(episode.query, pool.images[places.query])
    assert torch.equal(episode.query_labels, again.query_labels)


def test_sizes_stay_in_their_range_and_reach_both_ends() -> None:
    pool, generator = pool_of([40] * 7), seeded(0)
    sizes = [draw_sizes(pool, (2, 10), (1, 16), 4, generator) for _ in range(2000)]
    ways, shots = Counter(w for w, _ in sizes), Counter(s for _, s in sizes)
    assert set(ways) == set(range(2, 8)), "the pool has seven classes"
    assert set(shots) == set(range(1, 17))
    assert max(abs(count - 2000 / 6) for count in ways.values()) < 5 * (2000 / 6) ** 0.5
    few = sum(count for size, count in shots.items() if size <= 3)
    assert few == pytest.approx(2000 * 0.4893, abs=120), "log 4 / log 17 of the draws have one to three shots"


def test_the_smallest_class_bounds_the_shots() -> None:
    pool, generator = pool_of([40, 8, 40]), seeded(0)
    assert {draw_sizes(pool, (2, 3), (1, 16), 5, generator)[1] for _ in range(300)} == {1, 2, 3}
    assert {draw_sizes(pool, (3, 3), (2, 2), 5, generator) for _ in range(20)} == {(3, 2)}


@pytest.mark.parametrize("share", [0.01, 0.5, 0.7, 0.99])
def test_a_split_shares_no_class_and_loses_no_image(share: float) -> None:
    pool = pool_of([3, 4, 5, 6, 7, 8, 9])
    first, second = split_classes(pool, share, seed=1)
    assert not set(first.classes) & set(second.classes)
    assert len(first.classes) == min(max(2, round(7 * share)), 5)
    images = torch.cat([first.images, second.images]).flatten()
    assert torch.equal(images.sort().values, pool.images.flatten())
    for part in (first, second):
        assert torch.equal(part.labels, pool.labels[part.images.flatten().long()])


def test_a_split_follows_its_seed() -> None:
    pool = pool_of([2] * 20)
    assert split_classes(pool, 0.5, 0)[0].classes == split_classes(pool, 0.5, 0)[0].classes
    assert split_classes(pool, 0.5, 0)[0].classes != split_classes(pool, 0.5, 1)[0].classes


def test_small_classes_are_left_out_when_asked() -> None:
    pool = pool_of([3, 9, 5]).at_least(5)
    assert pool.classes == (3, 6)
    assert len(pool) == 14
    with pytest.raises(DataError, match=r"received made, whose classes have 5 to 9 images; expected one with .* 10"):
        pool.at_least(10)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((1, 0, 0), r"ways 1 \(at least 2\), shots 0 \(at least 1\), queries 0 \(at least 1\)"),
        ((4, 1, 1), "received 4 ways for made of 3 classes; .*fewer ways"),
        ((2, 3, 2), r"where 2 classes have fewer images, such as 0 \(3\), 6 \(4\); expected 5 .*pool.at_least\(5\)"),
    ],
)
def test_what_the_pool_cannot_fill_is_refused(sizes: tuple[int, int, int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        sample_episode(pool_of([3, 9, 4]), *sizes, seeded(0))


def test_sizes_out_of_order_are_refused() -> None:
    with pytest.raises(DataError, match=r"received ways \(5, 2\) and shots \(1, 4\); .*smaller number first"):
        draw_sizes(pool_of([9, 9]), (5, 2), (1, 4), 2, seeded(0))
    with pytest.raises(DataError, match="received 1 shots and 9 queries"):
        draw_sizes(pool_of([9, 9]), (2, 2), (1, 4), 9, seeded(0))


@pytest.mark.parametrize(("share", "classes"), [(0.0, 9), (1.0, 9), (0.5, 3)])
def test_a_split_that_cannot_be_is_refused(share: float, classes: int) -> None:
    with pytest.raises(DataError, match=f"received a share of {share:g} of the {classes} classes of made"):
        split_classes(pool_of([2] * classes), share, 0)


def test_labels_must_fit_the_images() -> None:
    images = torch.zeros(3, 1, 2, 2)
    with pytest.raises(DataError, match="received 2 labels for 3 images of x"):
        Pool("x", images, torch.tensor([0, 1]))
    with pytest.raises(DataError, match="received images of x without a label"):
        Pool("x", images, torch.tensor([0, 1, -1]))
    with pytest.raises(DataError, match="received 0 labels for 0 images"):
        Pool("x", images[:0], torch.zeros(0, dtype=torch.int64))


def test_a_pool_is_the_data_set_as_opened() -> None:
    grey = Preprocess((1, 28, 28), (0.0,), (1.0,))
    data = open_data("fashion_mnist_mini", grey, train=True)
    pool = read_pool("fashion_mnist_mini", data, limit=300)
    whole = {data[i][0].numpy().tobytes(): data[i][1] for i in range(len(data))}
    assert len(pool) == 300
    assert [whole[image.numpy().tobytes()] for image in pool.images] == pool.labels.tolist()


def test_images_without_labels_make_no_pool() -> None:
    class Unlabelled(ArrayImages):
        def __init__(self) -> None: ...

        def __len__(self) -> int:
            return 2

        def __getitem__(self, index: int) -> tuple[Image.Image, int]:
            return Image.new("L", (8, 8)), -1

    data = ImageData(Unlabelled(), Preprocess((1, 8, 8), (0.0,), (1.0,)).transform(), classes=[])
    with pytest.raises(DataError, match="received images of flat without a label"):
        read_pool("flat", data)


def test_an_episode_moves_whole() -> None:
    episode = sample_episode(pool_of([5, 5]), 2, 2, 2, seeded(0))
    there = episode.to(torch.device("meta"))
    tensors = ("support", "support_labels", "query", "query_labels")
    assert {getattr(there, name).device.type for name in tensors} == {"meta"}
    assert there.classes == episode.classes
    assert {getattr(episode, name).device.type for name in tensors} == {"cpu"}

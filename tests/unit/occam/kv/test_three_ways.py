"""States against embeddings against computing: the choice between the three."""

from collections import Counter
from itertools import product

import pytest

from occam.errors import FetchDeclined, FetchGivenUp
from occam.kv.break_even import BreakEven, Offer
from tests.unit.occam.kv.line import MB
from tests.unit.occam.kv.three_ways import ThreeWays

SIZES_MB = (1, 8, 64, 512, 2048)
MB_PER_S = (1, 10, 100, 1000, 10000)
LATENCIES_S = (0.0002, 0.005)
REBUILDS_S = (0.03, 0.3, 3.0)
SHARES = (1 / 20, 2 / 3)  # of a state's bytes, as of Video-LLaVA-7B and Qwen3-VL-8B
WARM_UP, MEASURED = 60, 140


def quick(**changes: float) -> ThreeWays:
    """64 MB that take 6.4 s to fetch and 1 s to compute, over embeddings half a second."""
    line = {"nbytes": 64 * MB, "bandwidth": 10 * MB, "latency_s": 0.001, "rebuild_s": 1.0, "embeddings": MB}
    return ThreeWays(**(line | changes))


def test_over_a_grid_the_fastest_of_three_is_taken_and_recomputing_is_never_lost_to(
    capsys: pytest.CaptureFixture[str],
) -> None:
    right, best, ratios = 0, Counter[str](), []
    cells = list(product(SIZES_MB, MB_PER_S, LATENCIES_S, REBUILDS_S, SHARES))
    for seed, (size, bandwidth, latency_s, rebuild_s, share) in enumerate(cells):
        line = ThreeWays(
            size * MB,
            bandwidth * MB,
            latency_s,
            rebuild_s,
            noise=0.2,
            outliers=0.01,
            seed=seed,
            embeddings=int(size * MB * share),
        )
        line.build()
        for _ in range(WARM_UP):
            line.take()
        lookups = [line.take() for _ in range(MEASURED)]
        fastest = min(line.ways_s, key=line.ways_s.__getitem__)
        best[fastest] += 1
        right += sum(lookup.way == fastest for lookup in lookups) > MEASURED / 2
        ratios.append(sum(each.seconds for each in lookups) / sum(each.rebuild_s for each in lookups))
    with capsys.disabled():
        print(
            f"\nof {len(cells)} cells (fastest: {dict(best)}) the fastest of three ways is taken in {right}; "
            f"time against computing: at most {max(ratios):.3f}, at least {min(ratios):.4f}"
        )
    assert min(best.values()) > 30
    assert right >= 0.97 * len(cells)
    assert max(ratios) <= 1.05


def test_of_a_line_not_known_yet_embeddings_are_tried_first_and_the_state_then() -> None:
    line = quick()
    line.build()
    assert [line.take().way for _ in range(2)] == ["embeddings"] * 2
    assert line.now < 1.0 + 2 * line.ways_s["embeddings"] + 1.0, "the state's try ended within what computing takes"
    fast = quick(bandwidth=10_000 * MB)
    fast.build()
    assert [fast.take().way for _ in range(3)] == ["embeddings", "state", "state"]


def test_a_state_is_not_fetched_where_embeddings_are_quicker_although_computing_is_not() -> None:
    line = quick(bandwidth=100 * MB, embeddings=0)
    line.build()
    assert Counter(line.take().way for _ in range(50))["state"] > 40, "without embeddings"
    line = quick(bandwidth=100 * MB)
    assert line.ways_s["embeddings"] < line.ways_s["state"] < line.ways_s["computed"]
    line.build()
    assert Counter(line.take().way for _ in range(50))["embeddings"] > 40


def test_embeddings_that_are_not_there_leave_states_to_be_fetched() -> None:
    line = quick(bandwidth=100 * MB)
    line.embeddings = 0
    line.build()
    assert [line.take().way for _ in range(6)][:2] == ["computed", "state"]
    assert Counter(line.take().way for _ in range(50))["state"] > 40


def test_a_state_that_falls_behind_embeddings_is_given_up() -> None:
    line = quick(bandwidth=1000 * MB)
    line.build()
    for _ in range(12):
        line.take()
    with line.chooser.fetching(line.state) as fetch:
        line.now += 0.2
        fetch.arrived(16 * MB)
        with pytest.raises(FetchGivenUp):
            fetch.patience_s(16 * MB)
        assert line.rebuild_s > 4 * 0.2 - 0.2, "computing would take longer than the rest"


def test_losses_on_states_do_not_keep_embeddings_away() -> None:
    line = quick()
    line.build()
    for _ in range(20):
        line.take()
    line.chooser._spend(1e6)
    with pytest.raises(FetchDeclined), line.chooser.asking():
        pass
    assert line.take().way == "embeddings"


def test_what_the_tower_took_is_the_price_of_embeddings_and_fetched_ones_teach_nothing_of_it() -> None:
    embeddings = BreakEven(lambda: 0.0)
    states = BreakEven(lambda: 0.0, embeddings=embeddings)
    offer = Offer(nbytes=MB, encoded=50)
    assert embeddings._rebuild_s(offer) is None
    states.built(encoded=0, tokens=10, seconds=2.0, prefill_s=1.5)
    assert embeddings._rebuild_s(offer) is None
    assert states._rebuild_s(Offer(nbytes=MB, encoded=50, tokens=10)) is None
    states.built(encoded=100, tokens=10, seconds=3.0, prefill_s=1.5)
    assert embeddings._rebuild_s(offer) == pytest.approx(0.75)
    assert states._rebuild_s(Offer(nbytes=MB, encoded=100, tokens=10)) == pytest.approx(3.0)


def test_embeddings_that_are_gone_have_no_price_until_they_are_there_again() -> None:
    """Else a state would be left alone for ever for what cannot be had."""
    line = quick(bandwidth=100 * MB)
    line.build()
    assert Counter(line.take().way for _ in range(20))["embeddings"] > 15
    there, line.embeddings = line.embeddings, 0
    assert Counter(line.take().way for _ in range(20))["state"] > 15
    line.embeddings = there
    line.chooser._embeddings._gone = False
    assert Counter(line.take().way for _ in range(20))["embeddings"] > 15


def test_what_is_prefilled_on_embeddings_says_nothing_of_the_tower() -> None:
    line = quick(bandwidth=100 * MB)
    line.build()
    earned = line.tower._builds.earned_s
    assert [line.take().way for _ in range(5)] == ["embeddings"] * 5
    assert (line.tower._builds.count, line.tower._builds.earned_s) == (1, earned)

import asyncio
from collections import Counter
from contextlib import suppress
from itertools import product
from random import Random

import pytest

from occam.errors import CorruptState, FetchDeclined, FetchGivenUp, StoreUnavailable
from occam.kv.break_even import LATE, MAX_DECLINED, SAVED, BreakEven, Offer, Pace
from tests.unit.occam.kv.line import MB, Line

SIZES_MB = (1, 8, 64, 512, 2048)
MB_PER_S = (10, 100, 1000, 10000)
LATENCIES_S = (0.0002, 0.005)
REBUILDS_S = (0.03, 0.3, 3.0)
WARM_UP, MEASURED = 60, 140


def known(line: Line) -> Line:
    """The line after both its paces were seen."""
    for _ in range(3):
        line.compute()
    for _ in range(4):
        assert line.lookup().taken == "fetched"
    return line


def quick(**changes: float) -> Line:
    """A line that takes a tenth of computing: 64 MB in 0.1 s, computed in 1 s."""
    return Line(**({"nbytes": 64 * MB, "bandwidth": 3000 * MB, "latency_s": 0.001, "rebuild_s": 1.0} | changes))


def test_a_pace_is_a_median() -> None:
    pace = Pace()
    assert pace.seconds(3) is None
    pace.observe(9.0, 0)
    assert pace.seconds() is None
    for seconds in (2.0, 2.0, 200.0, 200.0, 2.0):
        pace.observe(seconds, 2)
    assert pace.seconds(3) == 3.0
    for _ in range(4):
        pace.observe(20.0, 2)
    assert pace.seconds() == 10.0


def test_over_a_grid_the_faster_is_taken_and_recomputing_is_never_lost_to(capsys: pytest.CaptureFixture[str]) -> None:
    right, ratios = 0, []
    cells = list(product(SIZES_MB, MB_PER_S, LATENCIES_S, REBUILDS_S))
    for seed, (size, bandwidth, latency_s, rebuild_s) in enumerate(cells):
        line = Line(size * MB, bandwidth * MB, latency_s, rebuild_s, noise=0.2, outliers=0.01, seed=seed)
        line.compute()
        for _ in range(WARM_UP):
            line.lookup()
        lookups = [line.lookup() for _ in range(MEASURED)]
        fetched = sum(lookup.taken == "fetched" for lookup in lookups)
        right += (fetched > MEASURED / 2) == (line.fetch_s < rebuild_s)
        ratios.append(sum(each.seconds for each in lookups) / sum(each.rebuild_s for each in lookups))
    with capsys.disabled():
        print(
            f"\nof {len(cells)} cells (size x bandwidth x latency x computing) the faster is taken in {right}; "
            f"time against computing: at most {max(ratios):.3f}, at least {min(ratios):.4f}"
        )
    assert right >= 0.95 * len(cells)
    assert max(ratios) <= 1.05


@pytest.mark.parametrize("seed", range(20))
def test_whatever_the_line_does_the_loss_is_bounded(seed: int) -> None:
    """Bandwidth and latency anew for every lookup, over five decades: no prediction is worth anything."""
    random = Random(seed)
    size = random.choice(SIZES_MB[:4]) * MB
    line, lookups = quick(nbytes=size), []
    line.compute()
    for _ in range(300):
        line.bandwidth = MB * 10 ** random.uniform(0, 5)
        line.latency_s = 10 ** random.uniform(-4, -0.5)
        lookups.append(line.lookup())
    lost = sum(each.seconds - each.rebuild_s for each in lookups)
    overrun = max(each.seconds for each in lookups)
    assert lost <= SAVED * sum(each.rebuild_s for each in lookups) + line.rebuild_s + overrun
    assert {"fetched", "computed", "given up"} == {each.taken for each in lookups}


def test_a_good_past_does_not_pay_for_a_long_bad_time() -> None:
    line = known(quick())
    for _ in range(300):
        line.lookup()
    line.latency_s = line.rebuild_s / 2
    lookups = [line.lookup() for _ in range(100)]
    lost = sum(each.seconds - each.rebuild_s for each in lookups)
    assert lost <= (SAVED * 100 + 1) * line.rebuild_s + max(each.seconds for each in lookups)


def test_nothing_is_declined_or_given_up_before_anything_was_computed() -> None:
    line = quick(bandwidth=1 * MB, latency_s=1.0)
    assert [line.lookup().taken for _ in range(10)] == ["fetched"] * 10
    with line.chooser.fetching(line.offer) as fetch:
        assert fetch.patience_s(MB) is None


def test_a_line_that_broke_down_is_left_after_a_few_and_tried_seldom() -> None:
    line = known(quick())
    line.bandwidth = 1 * MB
    lookups = [line.lookup() for _ in range(200)]
    assert [each.taken for each in lookups[:4]] == ["given up"] * 4
    assert max(each.seconds for each in lookups[:4]) < (1 + LATE + 0.01) * line.rebuild_s
    assert max(each.seconds for each in lookups) < (1 + 8 / 64 + 0.01) * line.rebuild_s, "a try waits for a batch"
    assert sum(each.seconds for each in lookups) < 1.01 * 200 * line.rebuild_s
    assert 2 <= Counter(each.taken for each in lookups[4:])["given up"] <= 6


def test_fetches_that_come_through_too_late_are_tried_seldom() -> None:
    """The bytes arrive at once, and checking them takes longer than computing."""
    line = quick(bandwidth=1e6 * MB, latency_s=1e-5, rebuild_s=0.05)
    assert 1.2 < line.fetch_s / line.rebuild_s < 1.4
    for _ in range(3):
        line.compute()
    lookups = [line.lookup() for _ in range(300)]
    assert "fetched" in {each.taken for each in lookups}
    assert Counter(each.taken for each in lookups[100:])["computed"] >= 195


def test_a_line_that_recovered_is_noticed() -> None:
    line = known(quick())
    line.bandwidth = 1 * MB
    for _ in range(300):
        line.lookup()
    line.bandwidth = 3000 * MB
    lookups = [line.lookup() for _ in range(2 * MAX_DECLINED)]
    assert [each.taken for each in lookups[-50:]] == ["fetched"] * 50


def test_one_outlier_changes_nothing() -> None:
    line = known(quick())
    line.bandwidth = 1 * MB
    assert line.lookup().taken == "given up"
    line.bandwidth = 3000 * MB
    assert line.lookup().taken == "fetched"


def test_a_fetch_that_falls_behind_is_given_up() -> None:
    line = known(quick())
    with line.chooser.fetching(line.offer) as fetch:
        assert fetch.patience_s(8 * MB) == LATE * line.rebuild_s
        assert fetch.patience_s(64 * MB) == pytest.approx(2 * line.fetch_s, rel=0.1)
        line.now += 0.13
        fetch.arrived(8 * MB)
        assert fetch.patience_s(8 * MB) == pytest.approx(0.26), "by its own pace"
        line.now += 0.02
        with pytest.raises(FetchGivenUp, match="rest"):
            fetch.patience_s(8 * MB)


def test_a_pace_of_computing_that_is_wrong_does_not_stay() -> None:
    line = quick(rebuild_s=10.0)
    line.compute()
    line.rebuild_s = line.fetch_s / 2
    assert [line.lookup().taken for _ in range(400)][-5:] == ["computed"] * 5


def test_asking_that_costs_more_than_it_saves_is_left() -> None:
    """A round trip of a fifth of computing, and never a hit."""
    line, asked = quick(latency_s=0.2), 0
    line.compute()
    for _ in range(500):
        with suppress(FetchDeclined), line.chooser.asking():
            asked += 1
            line.now += line.latency_s
        line.compute()
    assert 0.2 * asked <= SAVED * 500 + 1 + 0.2
    assert asked > 40, "and seldom asked all the same"


def test_the_time_of_computing_follows_patches_and_tokens() -> None:
    chooser = BreakEven(lambda: 0.0)
    for _ in range(3):
        chooser.built(encoded=100, tokens=10, seconds=3.0, prefill_s=2.0)
    with chooser.asking():
        pass
    with pytest.raises(FetchGivenUp), chooser.fetching(Offer(nbytes=MB, encoded=100, tokens=10)):
        raise FetchGivenUp("late")
    with chooser.fetching(Offer(nbytes=MB, encoded=100, tokens=11)) as fetch:
        assert fetch.patience_s(MB) == pytest.approx(2 * 3.0)
    with chooser.fetching(Offer(nbytes=MB, encoded=101, tokens=10)) as fetch:
        assert fetch.patience_s(MB) == pytest.approx(2 * 3.0)
    fewer = chooser.fetching(Offer(nbytes=MB, encoded=99, tokens=10))
    with pytest.raises(FetchDeclined, match=r"1000000 bytes should take 3\.000 s, computing them 2\.990 s"), fewer:
        pass


def test_tiers_beside_one_another_know_the_same_of_computing_and_have_a_credit_each() -> None:
    near = known(quick())
    far = BreakEven(lambda: near.now, beside=near.chooser)
    dear = Offer(nbytes=MB, encoded=near.offer.encoded, tokens=near.offer.tokens)
    with far.fetching(dear) as fetch:
        assert fetch.patience_s(MB) == pytest.approx(near.rebuild_s), "twice what a try is hoped to take"
    with far.asking():
        near.now += 100.0
    with pytest.raises(FetchDeclined), far.asking():
        pass
    assert near.lookup().taken == "fetched"
    for _ in range(100):
        far.built(encoded=near.offer.encoded, tokens=near.offer.tokens, seconds=100.0, prefill_s=0.0)
    with far.asking():
        pass


def test_when_it_is_time_to_compute_every_tier_says_so() -> None:
    """Else lookups would go on to the next, slower tier for as long as that one takes to say so."""
    near = known(quick())
    far = BreakEven(lambda: near.now, beside=near.chooser)

    def fetch(chooser: BreakEven, seconds: float) -> None:
        with chooser.asking(), chooser.fetching(near.offer) as fetch:
            near.now += seconds
            fetch.complete()

    fetch(far, 0.2)
    fetched_s = 0.2
    with pytest.raises(FetchDeclined):  # noqa: PT012 - how often it is let is what is counted
        while True:
            fetch(near.chooser, 0.1)
            fetched_s += 0.1
    assert fetched_s == pytest.approx(0.9 / SAVED, rel=0.05)
    with pytest.raises(FetchDeclined):
        fetch(far, 0.2)
    near.compute()
    fetch(far, 0.2)
    fetch(near.chooser, 0.1)


def test_the_round_trip_is_no_part_of_a_bytes_price() -> None:
    line = known(quick(nbytes=MB, bandwidth=1e6 * MB, latency_s=0.1))
    with line.chooser.fetching(Offer(nbytes=10 * MB, encoded=line.offer.encoded, tokens=100)) as fetch:
        assert fetch.patience_s(10 * MB) == pytest.approx(2 * (0.1 + 0.01), rel=0.01), "0.1 s, and 1 ms for a megabyte"


def test_an_outage_is_a_loss_and_what_is_missing_is_nothing() -> None:
    line = known(quick())
    for _ in range(4):
        with pytest.raises(StoreUnavailable), line.chooser.fetching(line.offer):
            raise StoreUnavailable("away")
    with pytest.raises(FetchDeclined), line.chooser.fetching(line.offer):
        pass
    line = known(quick())
    for _ in range(9):
        with line.chooser.fetching(line.offer):
            pass
    assert line.lookup().taken == "fetched"


FAILURES = (StoreUnavailable("away"), CorruptState("broken"), asyncio.CancelledError(), None)


@pytest.mark.parametrize("failure", FAILURES, ids=["outage", "broken entry", "caller gone", "part missing"])
@pytest.mark.parametrize("what", ["asking", "fetching"])
def test_whatever_ends_a_question_or_a_fetch_its_seconds_are_paid(failure: BaseException | None, what: str) -> None:
    """So that while the credit is overdrawn nothing is asked."""
    line = known(quick())

    def fail() -> None:
        with line.chooser.asking() if what == "asking" else line.chooser.fetching(line.offer):
            line.now += 100.0
            if failure:
                raise failure

    with suppress(StoreUnavailable, CorruptState, asyncio.CancelledError):
        fail()
    with pytest.raises(FetchDeclined), line.chooser.asking():
        pass

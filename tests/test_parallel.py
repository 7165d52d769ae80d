import threading
import time

import pytest

from eoseg.parallel import ahead, give_back_memory, in_order


def test_items_pass_in_order_and_the_next_is_made_meanwhile():
    made, threads = [], set()

    def make():
        for number in range(5):
            made.append(number)
            threads.add(threading.get_ident())
            yield number

    for number in ahead(make()):
        wanted = min(number + 2, 5)
        for _ in range(500):
            if len(made) == wanted:
                break
            time.sleep(0.002)
        assert made == list(range(wanted))  # the one in use and the next, no more
    assert threading.get_ident() not in threads and len(made) == 5


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt()])
def test_the_makers_error_comes_where_its_item_would(error):
    def make():
        yield 1
        yield 2
        raise error

    found = []
    with pytest.raises(type(error)):
        for item in ahead(make()):
            found.append(item)
    assert found == [1, 2]


def test_a_consumer_that_stops_leaves_no_thread_behind():
    before = threading.active_count()
    for item in ahead(iter(range(100))):
        if item == 3:
            break
    items = ahead(iter(range(100)))
    next(items)
    items.close()
    assert threading.active_count() == before


def test_results_keep_their_order_however_long_each_takes():
    def slow(number):
        time.sleep(0.01 * (number % 3 == 0))
        return number * number

    assert list(in_order(slow, range(20), 4, 8)) == [number * number for number in range(20)]


def test_the_first_error_ends_the_work_and_few_items_are_taken_in_advance():
    begun, taken = [], []

    def work(number):
        begun.append(number)
        if number == 2:
            raise ValueError("two")
        return number

    def items():
        for number in range(1000):
            taken.append(number)
            yield number

    found = []
    with pytest.raises(ValueError, match="two"):
        for result in in_order(work, items(), 2, 5):
            found.append(result)
    assert found == [0, 1] and len(taken) < 10 and len(begun) < 10


def test_memory_can_be_given_back_anywhere(monkeypatch):
    give_back_memory()
    monkeypatch.setattr("sys.platform", "win32")
    give_back_memory()


# ---------------------------------------------------------------- behind


def test_jobs_are_done_behind_one_after_the_other_and_leaving_waits():
    import threading
    import time

    from eoseg.parallel import Behind

    done, threads = [], set()

    def job(number, pause):
        time.sleep(pause)
        threads.add(threading.get_ident())
        done.append(number)

    with Behind() as behind:
        for number in range(5):
            behind(job, number, pause=0.02 if number == 0 else 0)
        assert len(done) < 5
    assert done == [0, 1, 2, 3, 4] and len(threads) == 1 and threading.get_ident() not in threads


def test_the_first_error_behind_is_raised_and_jobs_after_it_are_not_done():
    from eoseg.parallel import Behind

    done = []
    with Behind() as behind:
        behind(lambda: 1 / 0)
        behind(done.append, 2)
        with pytest.raises(ZeroDivisionError):
            behind.wait()
        behind(done.append, 3)
        behind.wait()
        behind.check()
    assert done == []

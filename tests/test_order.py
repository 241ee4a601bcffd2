import torch

from cnn425.lab.order import Order


def epochs(order, count):
    seen = []
    for _ in range(count):
        while not order.epoch_is_over:
            seen.append(order.current().tolist())
            order.advance()
        order.next_epoch()
    return seen


def test_every_example_once_per_epoch_and_the_last_batch_smaller():
    order = Order(10, 4, seed=0)
    first = epochs(order, 1)
    assert [len(b) for b in first] == [4, 4, 2]
    assert sorted(index for batch in first for index in batch) == list(range(10))


def test_epochs_differ_and_seeds_differ():
    batches = epochs(Order(64, 64, seed=0), 2)
    assert batches[0] != batches[1]
    assert epochs(Order(64, 64, seed=1), 1)[0] != batches[0]


def test_global_random_state_changes_nothing():
    first = epochs(Order(20, 3, seed=5), 3)
    torch.manual_seed(99)
    assert epochs(Order(20, 3, seed=5), 3) == first


def test_resumed_between_any_two_batches_it_goes_on_alike():
    whole = epochs(Order(11, 3, seed=2), 3)
    for stop in range(12):
        order = Order(11, 3, seed=2)
        seen = []
        for _ in range(stop):
            if order.epoch_is_over:
                order.next_epoch()
            seen.append(order.current().tolist())
            order.advance()
        state = order.state_dict()
        later = Order(11, 3, seed=77)
        later.load_state_dict(state)
        while len(seen) < len(whole):
            if later.epoch_is_over:
                later.next_epoch()
            seen.append(later.current().tolist())
            later.advance()
        assert seen == whole, stop

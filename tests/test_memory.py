"""Scratch comes from one arena, in pieces that do not overlap, or from elsewhere once it is full; large results are written again."""

import threading

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.profiler import ProfilerActivity, profile

import cnn425.nn.functional as F
from cnn425.algorithms import memory


def test_pieces_do_not_overlap():
    memory.begin()
    first, second = (memory.scratch(torch.empty(0), 5).fill_(n) for n in (1, 2))
    assert first.tolist() == [1.0] * 5
    assert second.tolist() == [2.0] * 5


def test_begin_takes_the_memory_back():
    memory.begin()
    first = memory.scratch(torch.empty(0), 5).data_ptr()
    memory.begin()
    assert memory.scratch(torch.empty(0, dtype=torch.float64), 3).data_ptr() == first


def test_what_does_not_fit_is_allocated():
    memory.begin()
    assert memory.scratch(torch.empty(0), memory.BYTES).shape == (memory.BYTES,)
    assert memory.arena.used == 0


def test_threads_do_not_share_it():
    memory.begin()
    mine = memory.scratch(torch.empty(0), 8).zero_()
    thread = threading.Thread(target=lambda: memory.scratch(torch.empty(0), 8).fill_(7.0))
    thread.start()
    thread.join()
    assert not mine.any()


def test_the_default_device_does_not_matter():
    """Threads start without an arena, so this one makes its own while tensors are made elsewhere by default."""
    kinds = []

    def run():
        with torch.device("meta"):
            kinds.append(memory.scratch(torch.zeros(1, device="cpu"), 5).device.type)
            kinds.append(large().device.type)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert kinds == ["cpu", "cpu"]


ROWS, COLUMNS = 300, 1000  # a little over one megabyte


def large(rows=ROWS, columns=COLUMNS, dtype=torch.float32, **kind):
    return memory.result(torch.empty(0, device="cpu"), (rows, columns), dtype, **kind)


@pytest.fixture
def forgotten():
    memory.forget()
    yield
    memory.forget()


def test_a_large_result_that_nobody_holds_is_the_next_one(forgotten):
    address = large().data_ptr()
    again = large()
    assert again.data_ptr() == address
    assert again.shape == (ROWS, COLUMNS)
    assert again.is_contiguous()
    assert not again._is_view()
    other = large(COLUMNS, ROWS)
    assert other.data_ptr() != address
    del again
    turned = large(2 * ROWS, COLUMNS, torch.bfloat16, strides=(1, 2 * ROWS))  # as many bytes
    assert turned.data_ptr() == address
    assert turned.stride() == (1, 2 * ROWS)


def test_small_results_and_those_of_other_kinds_are_made_anew(forgotten):
    large(3, 5)
    memory.result(torch.empty(0, device="meta"), (ROWS, COLUMNS))
    assert not memory.results.kept


def test_all_that_is_kept_is_let_go(forgotten):
    """The arena, too, and what pools wrote down to work in it."""
    F.max_pool2d(torch.randn(8, 16, 64, 64), 2)
    F.conv2d(torch.randn(8, 16, 64, 64), torch.randn(32, 16, 3, 3))
    assert memory.arena.programs
    witnesses = [StorageWeakRef(t.untyped_storage()) for t in (memory.arena.memory, memory.results.kept[-1][1])]
    memory.forget()
    assert all(witness.expired() for witness in witnesses)
    torch.testing.assert_close(F.max_pool2d(x := torch.randn(8, 16, 64, 64), 2), torch.nn.functional.max_pool2d(x, 2))


def test_results_of_inference_mode_are_memory_like_any_other(forgotten):
    with torch.inference_mode():
        address = (inner := large()).data_ptr()
        assert inner.is_inference()
        del inner
    outer = large()
    assert outer.data_ptr() == address
    assert not outer.is_inference()


HOLDERS = {
    "view": lambda t: t[3:],
    "detached": lambda t: t.detach(),
    "array": lambda t: t.numpy(),
    "storage": lambda t: t.untyped_storage(),
    "typed storage": lambda t: t.storage(),
    "saved for backward": lambda t: torch.ones(1, requires_grad=True) * t,
    "gradient": lambda t: setattr(p := torch.nn.Parameter(torch.empty(ROWS, COLUMNS)), "grad", t) or p,
}


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
@pytest.mark.parametrize("kind", HOLDERS)
def test_memory_that_is_held_is_not_written_again(forgotten, kind):
    result = large()
    address, holder = result.data_ptr(), HOLDERS[kind](result)
    del result
    assert large().data_ptr() != address
    memory.results.kept = memory.results.kept[:1]
    del holder
    assert large().data_ptr() == address


def test_memory_that_another_process_may_see_or_that_was_resized_is_not_used_again(forgotten):
    for change in (torch.Tensor.share_memory_, lambda t: t.untyped_storage().resize_(64)):
        result = large()
        change(result)
        address = result.data_ptr()
        del result
        assert large().data_ptr() != address
        assert len(memory.results.kept) == 1
        memory.forget()


def test_only_the_latest_results_are_remembered(forgotten, monkeypatch):
    monkeypatch.setattr(memory, "KEPT", 5 << 20)
    held = [large(ROWS + n) for n in range(6)]
    kept = [size for size, _, _ in memory.results.kept]
    assert kept == [t.nbytes for t in held[-4:]]
    assert large(8 * ROWS).nbytes > memory.KEPT
    assert [size for size, _, _ in memory.results.kept] == kept


def test_training_with_a_large_local_layer_writes_its_gradient_again(forgotten):
    """Three steps by memory that is written again agree with three by fresh memory; gradients that are kept stay what they were."""
    w, x = torch.randn(24, 24, 64, 27, 3, 3), torch.randn(2, 27, 26, 26)
    assert w.nbytes > 16 * memory.LARGE
    steps, addresses = [], set()
    for fresh in (False, True):
        weight, gradients = w.clone().requires_grad_(), []
        for _ in range(3):
            weight.grad = None
            if fresh:
                memory.forget()
            F.locally_connected2d(x, weight).square().sum().backward()
            addresses.add((fresh, weight.grad.data_ptr()))
            gradients.append(weight.grad.sum((2, 3)))
            with torch.no_grad():
                weight.sub_(weight.grad, alpha=1e-3)
        steps.append(torch.stack(gradients))
    assert torch.equal(*steps)
    assert len([a for fresh, a in addresses if not fresh]) == 1
    first, second = (torch.autograd.grad(F.locally_connected2d(x, weight).sum(), weight)[0] for _ in range(2))
    assert torch.equal(first, second)
    assert first.data_ptr() != second.data_ptr()


def test_what_a_block_was_lent_is_taken_back():
    memory.begin()
    memory.scratch(torch.empty(0), 5)
    with memory.lent():
        first = memory.scratch(torch.empty(0), 7).data_ptr()
    with pytest.raises(TypeError), memory.lent():
        memory.scratch(torch.empty(0), 3).view("not a dtype")
    assert memory.scratch(torch.empty(0), 7).data_ptr() == first


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels last"])
@pytest.mark.parametrize(
    ("shape", "weight", "stride"),
    [((8, 256, 14, 14), (256, 256, 3, 3), 1), ((8, 512, 7, 7), (512, 512, 3, 3), 1), ((8, 64, 56, 56), (64, 64, 5, 5), 2)],
    ids=["Winograd", "large weight", "phases"],
)
def test_convolution_needs_no_more_than_its_tensors_and_16_megabytes(forgotten, shape, weight, stride, last):
    layout = torch.channels_last if last else torch.contiguous_format
    x, w = (torch.randn(s).contiguous(memory_format=layout).requires_grad_() for s in (shape, weight))
    assert_peak(lambda: F.conv2d(x, w, None, stride, weight[-1] // 2), x, w)


@pytest.mark.parametrize("batch", [1, 64])
def test_local_layer_needs_no_more_than_its_tensors_and_16_megabytes(forgotten, batch):
    x, w = torch.randn(batch, 32, 26, 26).requires_grad_(), torch.randn(24, 24, 64, 32, 3, 3).requires_grad_()
    assert_peak(lambda: F.locally_connected2d(x, w), x, w)


def assert_peak(function, *inputs):
    """Forward and backward, with nothing kept from before, hold their tensors, the arena (not all of it is touched) and little beside."""
    gy = torch.randn_like(function())
    memory.forget()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        torch.autograd.grad(function(), inputs, gy)
    held = most = 0
    for event in found.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    assert sum(t.nbytes for t in inputs) < most < sum(t.nbytes for t in (*inputs, gy)) + memory.BYTES + (1 << 20)

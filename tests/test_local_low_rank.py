"""Low-rank local layers: everything is that of the local layer with the mixed weight, which is never written out."""

import pytest
import torch
from calls import Largest

from cnn425 import nn
from cnn425.agreement import compare, transforms
from cnn425.algorithms import use
from cnn425.layers.local_low_rank import low_rank_local

float64 = {"dtype": torch.float64}
# Torch's own softmax and norm are the oracle.
NORMALISED = {"softmax": lambda m: torch.softmax(m, -1), "norm": lambda m: torch.nn.functional.normalize(m, dim=-1), None: lambda m: m}
# Each case is named after the bug it kills.
CASES = {
    "plain": {},
    "one stride for both axes": {"stride": (1, 2, 1)},
    "low padding used for the high side": {"padding": ((1, 0), (0, 2), (2, 1))},
    "dilation forgotten": {"dilation": 2, "size": 7},
    "ranks and groups exchanged": {"groups": 2},
    "rank one": {"rank": 1},
    "without bias": {"bias": False},
    "same with strides": {"padding": "same", "stride": 2},
    "a border that is a mirror": {"padding": 1, "padding_mode": "reflect"},
}


def built(d, rank=3, size=5, images=2, **arguments):
    arguments = {k: v[:d] if isinstance(v, tuple) else v for k, v in arguments.items()}
    layer = getattr(nn, f"LowRankLocal{d}d")(2, 4, tuple(range(size, size + d)), 2, rank, **arguments, **float64)
    for p in layer.parameters():
        torch.nn.init.normal_(p)
    return layer, torch.randn(images, 2, *range(size, size + d), **float64)


def by_definition(layer):
    """The function of all parameters and the image that first mixes the weight of each position."""
    names, twin = [name for name, _ in layer.named_parameters()], layer.unshared()

    def function(*given):
        p, x = dict(zip(names, given[:-1], strict=True)), given[-1]
        d, positions = layer.dimensions, layer.output_size
        if layer.mixed_by == "positions":
            m = p["mixing"]
        else:
            m = sum(p[f"mixing_{'ijk'[k]}"].view(*[1] * k, -1, *[1] * (d - 1 - k), layer.rank) for k in range(d))
        w = torch.einsum("...r,rz->...z", NORMALISED[layer.normalise](m), p["weight"].flatten(1)).view(*positions, *p["weight"].shape[1:])
        return torch.func.functional_call(twin, {"weight": w, **({"bias": p["bias"]} if "bias" in p else {})}, (x,))

    return function


def of_layer(layer):
    names = [name for name, _ in layer.named_parameters()]
    return lambda *given: torch.func.functional_call(layer, dict(zip(names, given[:-1], strict=True)), given[-1:])


@pytest.mark.parametrize("normalise", NORMALISED)
@pytest.mark.parametrize("mixing", ["sides", "positions"])
@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("d", [1, 2, 3])
def test_every_kind_of_coefficients(d, rank, mixing, normalise):
    layer, x = built(d, rank, mixing=mixing, normalise=normalise)
    assert compare(of_layer(layer), by_definition(layer), (*layer.parameters(), x))
    torch.testing.assert_close(layer.unshared()(x), layer(x))
    torch.testing.assert_close(layer.to_conv().weight, layer.unshared().to_conv().weight)


@pytest.mark.parametrize("d", [1, 2, 3])
@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_are_those_of_the_mixed_weight(case, d):
    layer, x = built(d, **CASES[case])
    assert compare(of_layer(layer), by_definition(layer), (*layer.parameters(), x))


@pytest.mark.parametrize("d", [1, 2, 3])
@pytest.mark.parametrize("case", [*CASES, "bands that see no pixel"])
def test_so_do_many_images(case, d):
    """Weights are then mixed for some positions at a time."""
    arguments = CASES.get(case, {"padding": 40 if d == 1 else 5})
    layer, x = built(d, **{"rank": 4, "size": 60 if d == 1 else 6, "images": 64, **arguments})
    assert compare(of_layer(layer), by_definition(layer), (*layer.parameters(), x))


@pytest.mark.parametrize("frozen", [("weight", "mixing_i", "mixing_j"), ("weight", "bias"), ("mixing_i", "mixing_j", "x"), ("x",)], ids=str)
def test_many_images_and_what_is_frozen(frozen):
    layer, x = built(2, rank=4, size=9, images=32)
    given = {**dict(layer.named_parameters()), "x": x.requires_grad_()}
    asked = [t for name, t in given.items() if name not in frozen]
    expected = torch.autograd.grad(layer(x).sin().sum(), asked)
    for name in frozen:
        given[name].requires_grad_(False)
    for mine, wanted in zip(torch.autograd.grad(layer(x).sin().sum(), asked), expected, strict=True):
        assert torch.equal(mine, wanted)


def test_a_mixture_of_one_convolution_is_that_convolution():
    """Its coefficients add up to 1, so each is 1, and parameters that change nothing have gradients of zero."""
    layer, x = nn.LowRankLocal2d(3, 8, 12, 3, rank=1, padding=1), torch.randn(4, 3, 12, 12)
    for p in layer.parameters():
        torch.nn.init.normal_(p)
    y, expected = layer(x), nn.functional.conv2d(x, layer.weight[0], layer.bias, padding=1)
    assert torch.equal(y, expected)
    y.sin().sum().backward()
    assert layer.mixing_i.grad.count_nonzero() == layer.mixing_j.grad.count_nonzero() == 0
    assert torch.equal(layer.weight.grad[0], torch.autograd.grad(expected.sin().sum(), layer.weight)[0][0])


def test_a_transform_of_something_else():
    """The layer's own tensors are plain within it."""
    layer, x = built(1, size=2100)
    y = layer(x)
    torch.testing.assert_close(torch.vmap(lambda s: s * layer(x))(torch.arange(3.0, **float64)), torch.stack((0 * y, y, 2 * y)))
    torch.testing.assert_close(torch.func.grad(lambda s: (s * layer(x)).sum())(torch.ones((), **float64)), y.sum())


def test_derivatives_of_many_images():
    """Whose weights are mixed for some positions at a time."""
    layer, x = built(1, rank=4, groups=2, size=60, images=36)
    given = [p.detach().requires_grad_() for p in (*layer.parameters(), x)]
    assert torch.autograd.gradcheck(of_layer(layer), given, check_forward_ad=True, check_batched_grad=True, fast_mode=True)
    assert torch.autograd.gradgradcheck(of_layer(layer), given, fast_mode=True)


def test_derivatives_transforms_and_the_compiler():
    layer, x = built(1, rank=2, groups=2, mixing="sides", size=3)
    given = [p.detach().requires_grad_() for p in (*layer.parameters(), x)]
    ours, theirs = of_layer(layer), by_definition(layer)
    assert torch.autograd.gradcheck(ours, given, check_forward_ad=True, check_batched_grad=True, fast_mode=True)
    assert torch.autograd.gradgradcheck(ours, given, fast_mode=True)
    assert not any(transforms(ours, theirs, given).values())
    layer, x = built(2)
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(layer, fullgraph=True, backend="aot_eager")(x), layer(x))


def test_no_tensor_of_the_size_of_the_unshared_weight_is_made():
    layer, x = nn.LowRankLocal2d(16, 16, 20, 5, rank=2), torch.randn(1, 16, 20, 20, requires_grad=True)
    with Largest() as definition:  # windows of the image, by the definition
        layer(x).square().sum().backward()
    unshared = layer.unshared().weight.numel()
    assert definition.numbers < unshared / 10
    assert layer.weight.numel() < unshared / 100
    with Largest() as mode:
        layer.unshared()
    assert mode.numbers >= unshared  # the watch can see it


def test_nor_by_many_images():
    layer, x = nn.LowRankLocal2d(8, 8, 28, 5, rank=4), torch.randn(64, 8, 28, 28, requires_grad=True)
    layer(x).square().sum().backward()

    def largest(call):
        with torch.profiler.profile(profile_memory=True) as profile:
            call()
        return max(event.self_cpu_memory_usage for event in profile.events())

    unshared = layer.unshared().weight.nbytes
    assert largest(lambda: layer(x).square().sum().backward()) < 0.6 * unshared
    assert largest(layer.unshared) >= unshared  # the watch can see it


def test_it_starts_as_a_convolution_with_torchs_spread():
    for normalise in NORMALISED:
        layer = nn.LowRankLocal2d(16, 64, 6, 3, rank=5, normalise=normalise)
        w = layer.unshared().weight
        torch.testing.assert_close(w, w[:1, :1].expand_as(w))
        torch.testing.assert_close(w.std().item(), (16 * 9) ** -0.5 / 3**0.5, rtol=0.05, atol=0)


@pytest.mark.parametrize("normalise", NORMALISED)
def test_made_from_a_convolution_it_computes_the_same(normalise):
    conv, x = torch.nn.Conv2d(4, 6, 3, padding=1, stride=2, groups=2).double(), torch.randn(2, 4, 7, 8, **float64)
    layer = nn.LowRankLocal2d.from_conv(conv, (7, 8), rank=3, normalise=normalise)
    torch.testing.assert_close(layer(x), conv(x))
    torch.testing.assert_close(layer.to_conv().state_dict(), conv.state_dict())
    assert not torch.allclose(layer.weight[0], layer.weight[1])  # or they would never part


def test_counts_state_repr_and_unbatched_images():
    layer, x = nn.LowRankLocal2d(2, 3, (5, 6), 2, rank=4, padding=1), torch.randn(2, 2, 5, 6)
    assert {name: tuple(p.shape) for name, p in layer.named_parameters()} == {
        "mixing_i": (6, 4),
        "mixing_j": (7, 4),
        "weight": (4, 3, 2, 2, 2),
        "bias": (3,),
    }
    assert "rank=4, mixing='sides', normalise='softmax', parameters=151" in repr(layer)
    twin = nn.LowRankLocal2d(2, 3, (5, 6), 2, rank=4, padding=1)
    twin.load_state_dict(layer.state_dict())
    assert torch.equal(twin(x), layer(x))
    torch.testing.assert_close(layer(x)[1], layer(x[1]))
    assert torch.equal(torch.fx.symbolic_trace(torch.nn.Sequential(layer))(x), layer(x))
    with torch.autocast("cpu"):
        assert layer(x).dtype == torch.bfloat16


def test_of_full_rank_it_is_any_local_layer():
    local, x = nn.LocallyConnected1d(2, 3, 6, 2, bias=False, **float64), torch.randn(2, 2, 6, **float64)
    layer = nn.LowRankLocal1d(2, 3, 6, 2, rank=5, bias=False, mixing="positions", normalise=None, **float64)
    layer.load_state_dict({"weight": local.weight, "mixing": torch.eye(5, **float64)})
    torch.testing.assert_close(layer(x), local(x))


@pytest.mark.parametrize("arguments", [{"rank": 0}, {"rank": 2, "mixing": "rows"}, {"rank": 2, "normalise": "l2"}], ids=str)
def test_refusals(arguments):
    with pytest.raises(ValueError, match="rank must be a positive int, mixing 'sides' or 'positions', and normalise one of"):
        nn.LowRankLocal2d(1, 1, 5, 3, **arguments)
    with pytest.raises(TypeError, match=r"LowRankLocal2d\.from_conv: conv must be a Conv2d, but got Linear"):
        nn.LowRankLocal2d.from_conv(torch.nn.Linear(1, 1), 5)


def test_half_precision_is_rounded_once():
    """80000 and -80000 are more than float16 can hold, and their mixture is 0."""
    weight, mixing = torch.tensor([400.0, -400.0]).half().view(2, 1, 1, 1), torch.ones(2, 1).half()
    assert low_rank_local(1, torch.full((1, 1, 1), 200.0).half(), weight, mixing, None, 1, 0, 1, 1).item() == 0


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rank", [1, 3])
def test_loops_mix_as_the_definition_does(rank, bias, memory_format):
    layer, x = built(2, rank, size=9, bias=bias)
    layer, x, found = layer.float(), x.float().to(memory_format=memory_format), {}
    for name in ("default", "definition"):
        image = x.clone().requires_grad_()
        with use("definition") if name == "definition" else torch.enable_grad():
            y = layer(image)
            found[name] = y, *torch.autograd.grad(y.sin().sum(), [image, *layer.parameters()])
        assert y.is_contiguous(memory_format=memory_format)
    for mine, expected in zip(found["default"], found["definition"], strict=True):
        torch.testing.assert_close(mine, expected)


def test_many_images_and_positions_have_the_same_bits_with_any_number_of_threads():
    """More than a thread adds up at once, for each of the coefficients and biases."""
    layer, x = nn.LowRankLocal2d(1, 30, 36, 3, rank=2), torch.randn(5, 1, 36, 36)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(torch.autograd.grad(layer(x).sin().sum(), [*layer.parameters()]))
    finally:
        torch.set_num_threads(before)
    layer.double()
    exact = torch.autograd.grad(layer(x.double()).sin().sum(), [*layer.parameters()])
    for one, two, three, expected in zip(*found, exact, strict=True):
        assert torch.equal(one, two)
        assert torch.equal(one, three)
        torch.testing.assert_close(one.double(), expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("normalise", [None, "norm"])
@pytest.mark.parametrize("mixing", ["sides", "positions"])
def test_complex_numbers(mixing, normalise):
    layer = nn.LowRankLocal2d(2, 3, 4, 2, rank=2, mixing=mixing, normalise=normalise, dtype=torch.complex128)
    x = torch.randn(2, 2, 4, 4, dtype=torch.complex128)
    assert compare(of_layer(layer), by_definition(layer), [torch.randn_like(t) for t in (*layer.parameters(), x)])


def test_what_comes_from_the_convolution_cannot_be_chosen():
    with pytest.raises(TypeError, match=r"from_conv\(\) takes stride from the convolution; leave it out"):
        nn.LowRankLocal2d.from_conv(torch.nn.Conv2d(2, 4, 3), 6, rank=2, stride=2)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("weight", (3, 8, 3, 3, 3)),
        ("weight", (2, 2, 8, 3, 3, 3)),
        ("weight", (8, 3, 3, 3)),
        ("mixing_i", (12, 2)),
        ("mixing_i", (11, 3)),
        ("bias", (5,)),
        ("bias", (8, 11, 11)),
    ],
    ids=str,
)
def test_parameters_that_do_not_fit_are_refused(name, size):
    """Loops would read behind them."""
    layer = nn.LowRankLocal2d(3, 8, 13, 3, 2)
    with pytest.raises(RuntimeError):
        torch.func.functional_call(layer, {name: torch.zeros(size)}, (torch.ones(8, 3, 13, 13),))
    with pytest.raises(RuntimeError, match=r"need mixing coefficients of size .2, 11, 11., but got size .2, 1, 1."):
        low_rank_local(2, torch.ones(1, 3, 13, 13), layer.weight, torch.ones(2, 1, 1), None, 1, 0, 1, 1)
    with pytest.raises(ValueError, match=r"bias must be True \(one per output channel\) or False, but got bias='position'"):
        nn.LowRankLocal2d(3, 8, 13, 3, 2, bias="position")


def test_the_norm_of_half_precision_neither_overflows_nor_vanishes():
    layer = nn.LowRankLocal1d(1, 1, 4, 1, 1, normalise="norm", mixing="positions").half()
    with torch.no_grad():
        layer.mixing.copy_(torch.tensor([[0.0], [1e-4], [300.0], [1.0]]))
    assert layer.coefficients().flatten().tolist() == [0, 1, 1, 1]


def test_groups_may_be_a_tensor_and_the_rank_only_an_int():
    layer = nn.LowRankLocal2d(4, 8, 13, 3, 2, groups=torch.tensor(2))
    assert layer(torch.randn(1, 4, 13, 13)).shape == (1, 8, 11, 11)
    for rank in (1.5, None, "a", [2], True):
        with pytest.raises(ValueError, match="rank must be a positive int"):
            nn.LowRankLocal2d(4, 8, 13, 3, rank)

"""convert and revert: the same model, only computed by other layers."""

import copy
import pickle
import sys
import types

import pytest
import torch
import torchvision
from forked import served
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.utils import parametrizations, prune
from torch.utils.checkpoint import checkpoint

from cnn425 import nn
from cnn425.agreement import TOLERANCES, compare, measure
from cnn425.nn.convert import COUNTERPART, OURS, convert, report, revert

SMALL = {
    "resnet18": 64,
    "densenet121": 32,
    "mobilenet_v2": 32,
    "mobilenet_v3_small": 32,
    "efficientnet_b0": 32,
    "shufflenet_v2_x0_5": 32,
    "squeezenet1_1": 64,
    "googlenet": 64,
    "regnet_y_400mf": 32,
    "convnext_tiny": 32,
    "alexnet": 64,
    "vgg11_bn": 32,
}
FAST = ("resnet18", "mobilenet_v3_small", "squeezenet1_1")


def network():
    layers = [
        torch.nn.Conv2d(3, 4, 3, padding="same", padding_mode="circular"),
        torch.nn.BatchNorm2d(4),
        torch.nn.ReLU(inplace=True),
        torch.nn.MaxPool2d(2, ceil_mode=True),
        torch.nn.LPPool2d(2, 2),
        torch.nn.AdaptiveAvgPool2d((2, None)),
        torch.nn.Flatten(),
        torch.nn.Linear(16, 5),
        torch.nn.Sigmoid(),
        torch.nn.Softmax(dim=1),
    ]
    return torch.nn.Sequential(*layers).double()


def built(name):
    options = {"init_weights": True, "aux_logits": False} if name == "googlenet" else {}
    return getattr(torchvision.models, name)(num_classes=7, **options).eval()


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in FAST else pytest.mark.slow) for n in SMALL])
def test_torchvision_models_compute_the_same(name):
    theirs = built(name)
    ours = convert(theirs)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert not report(ours).builtin
    assert report(ours).ours.keys() == report(theirs).builtin.keys()
    # dozens of layers, each with its rounding: float32's tolerance, once per layer
    layers = len(report(theirs).builtin)
    tolerances = {torch.float32: TOLERANCES[torch.float32]._replace(absolute=TOLERANCES[torch.float32].absolute * layers)}
    verdict = compare(ours, theirs, [torch.randn(2, 3, SMALL[name], SMALL[name])], tolerances=tolerances)
    assert verdict, verdict.wrong
    back = revert(ours)
    assert [type(m) for m in back.modules()] == [type(m) for m in theirs.modules()]


def test_every_layer_has_its_namesake_with_the_same_attributes():
    arguments = {"Conv": (2, 4, 3), "Linear": (3, 2), "LPPool": (2, 3), "Adaptive": (3,), "MaxPool": (3,), "AvgPool": (3,)}
    arguments |= {"Unfold": (3,), "Fold": (4, 3)}
    for ours in OURS:
        builtin = getattr(torch.nn, ours.__name__)
        given = next((a for start, a in arguments.items() if ours.__name__.startswith(start)), ())
        assert vars(builtin(*given)).keys() == vars(ours(*given)).keys(), ours.__name__
        assert COUNTERPART[builtin] is ours
    missing = {name for name in nn.__all__ if hasattr(torch.nn, name) and name not in ("functional", "convert") and "Lazy" not in name} - {
        c.__name__ for c in OURS
    }
    assert not missing


def test_a_copy_leaves_the_model_alone():
    model = network()
    kinds, parameters = [type(m) for m in model.modules()], list(model.parameters())
    ours = convert(model)
    assert [type(m) for m in model.modules()] == kinds
    assert not {id(p) for p in parameters} & {id(p) for p in ours.parameters()}
    verdict = compare(ours, model, [torch.randn(2, 3, 9, 9, dtype=torch.float64)])
    assert verdict, verdict.wrong


def test_in_place_keeps_the_very_objects():
    model = network()
    modules, parameters = list(model.modules()), list(model.parameters())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    assert convert(model, inplace=True) is model
    assert all(a is b for a, b in zip(modules, model.modules(), strict=True))
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    before = model[0].weight.detach().clone()
    model(torch.randn(2, 3, 9, 9, dtype=torch.float64)).square().sum().backward()
    optimizer.step()
    assert not torch.equal(before, model[0].weight)
    assert revert(model, inplace=True) is model
    assert type(model[0]) is torch.nn.Conv2d


def test_the_model_itself_may_be_a_layer():
    assert type(convert(torch.nn.Linear(2, 3))) is nn.Linear
    assert type(revert(nn.Linear(2, 3))) is torch.nn.Linear


def test_training_flag_dtype_requires_grad_and_attributes_are_kept():
    model = network().eval()
    model[0].weight.requires_grad_(False)
    model[7].note = "mine"
    model[2].train()
    ours = convert(model)
    assert [m.training for m in ours.modules()] == [m.training for m in model.modules()]
    assert not ours[0].weight.requires_grad
    assert (ours[7].weight.dtype, ours[7].note) == (torch.float64, "mine")


def test_hooks_are_kept():
    model, seen = torch.nn.Sequential(torch.nn.Linear(2, 2)), []
    model[0].register_forward_hook(lambda *_: seen.append("forward"))
    model[0].register_forward_pre_hook(lambda *_: seen.append("before"))
    model[0].register_full_backward_hook(lambda *_: seen.append("backward"))
    convert(model, inplace=True)(torch.ones(1, 2, requires_grad=True)).sum().backward()
    assert seen == ["before", "forward", "backward"]


def test_shared_modules_and_tied_parameters_stay_shared():
    shared = torch.nn.Linear(3, 3)
    model = torch.nn.Sequential(shared, torch.nn.ReLU(), shared, torch.nn.Linear(3, 3))
    model[3].weight = shared.weight
    ours = convert(model)
    assert ours[0] is ours[2]
    assert ours[3].weight is ours[0].weight
    assert ours[0].weight is not shared.weight
    assert len(list(ours.parameters())) == len(list(model.parameters()))


def test_subclasses_are_left_alone_and_reported():
    class Doubled(torch.nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    model = torch.nn.Sequential(Doubled(2, 2), torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    ours = convert(model)
    assert [type(m) for m in ours] == [Doubled, nn.Linear, torch.nn.BatchNorm1d]
    found = report(ours)
    assert found.ours == {"1": "Linear"}
    assert found.builtin == {}
    assert found.left_alone == {"0": "Doubled, a subclass of Linear, may compute something else", "2": "BatchNorm1d has no counterpart"}
    assert str(found).splitlines()[:3] == ["ours: 1", "  1: Linear", "torch's, can be converted: 0"]
    assert report(model).builtin == {"1": "Linear"}


def test_lazy_layers_are_left_alone_until_they_know_their_size():
    model = torch.nn.Sequential(torch.nn.LazyLinear(3))
    assert "subclass of Linear" in report(model).left_alone["0"]
    assert type(convert(model)[0]) is torch.nn.LazyLinear
    model(torch.ones(1, 2))
    assert type(convert(model)[0]) is nn.Linear


def test_parametrized_layers_are_left_alone_and_conversion_before_parametrization_works():
    model = torch.nn.Sequential(parametrizations.weight_norm(torch.nn.Linear(2, 3)))
    assert "subclass of Linear" in report(model).left_alone["0"]
    assert compare(convert(model), model, [torch.randn(4, 2)])
    plain = torch.nn.Linear(2, 3)
    ours, theirs = (parametrizations.weight_norm(m) for m in (convert(plain), copy.deepcopy(plain)))
    assert compare(ours, theirs, [torch.randn(4, 2)])
    assert isinstance(ours, nn.Linear)


HOOKED = {
    "weight_norm": torch.nn.utils.weight_norm,
    "spectral_norm": torch.nn.utils.spectral_norm,
    "pruned": lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
}


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
@pytest.mark.parametrize("name", HOOKED)
def test_a_weight_that_a_hook_computes_is_copied(name):
    model, x = torch.nn.Sequential(HOOKED[name](torch.nn.Linear(3, 4))), torch.randn(2, 3)
    model(x).sum().backward()
    ours = convert(model.eval())
    assert type(ours[0]) is nn.Linear
    assert ours[0].weight is not model[0].weight
    assert compare(ours, model, [x])
    assert compare(revert(ours), model, [x])
    ours(x).sum().backward()
    assert all(p.grad is not None for p in ours.parameters())


def test_local_layers_have_no_counterpart_and_stay():
    model = torch.nn.Sequential(nn.LocallyConnected2d(1, 2, (5, 5), 3), nn.ReLU())
    back = revert(model)
    assert [type(m) for m in back] == [nn.LocallyConnected2d, torch.nn.ReLU]
    assert report(back).ours == {"0": "LocallyConnected2d"}


def test_converted_models_are_saved_and_loaded():
    model = convert(network())
    again = pickle.loads(pickle.dumps(model))
    assert [type(m) for m in again.modules()] == [type(m) for m in model.modules()]
    assert network().load_state_dict(model.state_dict())


def test_there_and_back_computes_bit_for_bit_what_it_did():
    model, x = network(), torch.randn(2, 3, 9, 9, dtype=torch.float64)
    assert measure("output", revert(convert(model))(x), copy.deepcopy(model)(x), {}).error == 0


def test_what_is_no_model_is_refused():
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module, but got list"):
        convert([torch.nn.ReLU()])


# ---- training in two processes ----------------------------------------------------------------------------------------------------------


def every_kind_of_layer():
    layers = [
        nn.Conv2d(2, 4, 3),
        nn.ReLU(inplace=True),
        nn.LocallyConnected2d(4, 3, 7, 2),
        nn.MaxPool2d(2),
        nn.AvgPool2d(2, 1),
        torch.nn.Flatten(),
        nn.Linear(12, 5),
        nn.Sigmoid(),
        nn.Linear(5, 3),
    ]
    return torch.nn.Sequential(*layers).double()


def half_the_batch_each(rank, rendezvous):
    distributed.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    torch.manual_seed(0)
    alone, loss = every_kind_of_layer(), nn.CrossEntropyLoss()
    replicated, sharded = copy.deepcopy(alone), copy.deepcopy(alone)
    x, target = torch.randn(6, 2, 9, 9, dtype=torch.float64), torch.randint(3, (6,))
    loss(alone(x), target).backward()
    for together in (torch.nn.parallel.DistributedDataParallel(replicated), fully_shard(sharded, mesh=init_device_mesh("cpu", (2,)))):
        loss(together(x[rank::2]), target[rank::2]).backward()
    for name, p in alone.named_parameters():
        torch.testing.assert_close(replicated.get_parameter(name).grad, p.grad)
        torch.testing.assert_close(sharded.get_parameter(name).grad.full_tensor(), p.grad)
    distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_find_the_gradients_of_one_replicated_or_sharded(tmp_path):
    served()
    torch.multiprocessing.start_processes(half_the_batch_each, (tmp_path / "rendezvous",), nprocs=2, start_method="forkserver")


def test_checkpointed_activations_give_the_same_gradients():
    model = every_kind_of_layer()
    verdict = compare(
        lambda x: checkpoint(model, x, use_reentrant=False), lambda x: model(x), [torch.randn(2, 2, 9, 9, dtype=torch.float64)]
    )
    assert verdict, verdict.wrong


def test_scaled_gradients_step_and_overflow_is_skipped():
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for x in (torch.ones(1, 2), torch.full((1, 2), 1e38)):
        before = model.weight.detach().clone()
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = nn.CrossEntropyLoss()(model(x), torch.tensor([int(model(x).argmin())]))
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        assert torch.equal(before, model.weight) == bool((x > 1).any())


def test_captum_is_told_the_rules_of_our_layers(monkeypatch):
    """Its DeepLift looks types up exactly, in this dictionary, and skips others without a word."""
    rules = {torch.nn.ReLU: "of activations", torch.nn.MaxPool2d: "of pools"}
    monkeypatch.setitem(sys.modules, "captum.attr._core.deep_lift", types.SimpleNamespace(SUPPORTED_NON_LINEAR=rules))
    model = nn.convert(torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.ReLU(), torch.nn.MaxPool2d(2)))
    assert [rules.get(type(layer)) for layer in model] == [None, "of activations", "of pools"]


@pytest.mark.parametrize("function", [convert, revert, report])
def test_what_is_no_module_is_refused(function):
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, but got NoneType"):
        function(None)

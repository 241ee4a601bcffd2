import torch

from experiments import patterns


def test_smallest_network_learns_the_three_patterns(tmp_path, capsys):
    verdict = patterns.main(["--epochs", "30", "--log-dir", str(tmp_path)])
    assert verdict.holds
    assert verdict.accuracy == 1.0
    assert verdict.parameters == 30
    assert (tmp_path / "weights.png").stat().st_size > 1000
    out = capsys.readouterr().out
    assert "by at most" in out
    assert f"tensorboard --logdir {tmp_path}" in out


def test_a_wrong_gradient_is_noticed():
    class Doubled(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, g):
            return 1.01 * g

    class Loss(torch.nn.CrossEntropyLoss):
        def forward(self, x, y):
            return super().forward(Doubled.apply(x), y)

    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(9, 3)).double()
    images, labels = patterns.patterns().batch(slice(None), torch.float64)
    assert patterns.gradient_error(model, Loss(), images, labels) > 5e-3
    assert patterns.gradient_error(model, torch.nn.CrossEntropyLoss(), images, labels) < 1e-7


def test_weights_are_left_as_they_were_by_the_gradient_check():
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(9, 3)).double()
    before = [p.detach().clone() for p in model.parameters()]
    patterns.gradient_error(model, torch.nn.CrossEntropyLoss(), *patterns.patterns().batch(slice(None), torch.float64))
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_learnt_weights_look_like_the_patterns(tmp_path):
    """Each unit's picture is brighter on its own pattern's ink than elsewhere: the weights are templates."""
    patterns.main(["--log-dir", str(tmp_path), "--epochs", "30"])
    from cnn425.lab import checkpoint

    weights = checkpoint.read(checkpoint.checkpoints(tmp_path)[0])["model"]["1.weight"].view(3, 3, 3)
    ink = patterns.patterns().images[:, 0].bool()
    for unit in range(3):
        assert weights[unit][ink[unit]].mean() > weights[unit][~ink[unit]].mean() + 0.5

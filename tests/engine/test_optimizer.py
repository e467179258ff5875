import copy

import torch

from megatron_music.engine.optimizer import GroupStepAdamW


def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Linear(5, 3, bias=False))


def groups(model):
    return [
        {"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if p.dim() == 1], "weight_decay": 0.0},
    ]


def steps(model, optimizer, first, last):
    for step in range(first, last):
        torch.manual_seed(step)
        optimizer.zero_grad()
        model(torch.randn(4, 6)).square().sum().backward()
        optimizer.step()


def optimizer_of(kind, model):
    return kind(groups(model), lr=1e-2, betas=(0.9, 0.95), eps=1e-8)


def assert_equal(one, other):
    for x, y in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-6, atol=1e-7)


def test_it_is_adamw():
    ours, theirs = network(), network()
    steps(ours, optimizer_of(GroupStepAdamW, ours), 0, 6)
    steps(theirs, optimizer_of(torch.optim.AdamW, theirs), 0, 6)
    assert_equal(ours, theirs)


def test_it_goes_on_exactly_after_a_load():
    model = network()
    optimizer = optimizer_of(GroupStepAdamW, model)
    steps(model, optimizer, 0, 3)
    content, weights = copy.deepcopy(optimizer.state_dict()), copy.deepcopy(model.state_dict())
    steps(model, optimizer, 3, 6)

    resumed = network()
    resumed.load_state_dict(weights)
    loaded = optimizer_of(GroupStepAdamW, resumed)
    loaded.load_state_dict(content)
    steps(resumed, loaded, 3, 6)
    assert all(torch.equal(x, y) for x, y in zip(model.parameters(), resumed.parameters(), strict=True))

    plain = network()
    steps(plain, optimizer_of(torch.optim.AdamW, plain), 0, 6)
    assert_equal(resumed, plain)


def test_a_state_is_whole_before_the_first_step():
    optimizer = optimizer_of(GroupStepAdamW, network())
    state = optimizer.state_dict()["state"]
    assert len(state) == 3
    assert all(float(entry["step"]) == 0 and not entry["exp_avg"].any() for entry in state.values())

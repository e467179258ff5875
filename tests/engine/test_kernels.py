import pytest
import torch
from allocated import MostAllocated

from megatron_music.engine import kernels
from megatron_music.engine.kernels import RMSNormalize, RotaryHeads, SwiGLU, VocabularyCrossEntropy


class OneProcess:
    def size(self):
        return 1

    def rank(self):
        return 0


def both_ways(function, reference, *inputs):
    """Asserts equal results and gradients of two functions of the same inputs, in the reference's FP64."""
    ours = [value.clone().requires_grad_() for value in inputs]
    wide = [value.double().requires_grad_() for value in inputs]
    result, expected = function(*ours), reference(*wide)
    result, expected = ([x] if torch.is_tensor(x) else list(x) for x in (result, expected))
    # Tensors of another stride than the result's, as a following transposition would hand them back.
    weights = [torch.randn(value.shape[::-1]).permute(*reversed(range(value.dim()))) for value in expected]
    sum((x * w).sum() for x, w in zip(result, weights, strict=True)).backward()
    sum((x * w.double()).sum() for x, w in zip(expected, weights, strict=True)).backward()
    for x, y in zip(
        [*result, *(value.grad for value in ours)], [*expected, *(value.grad for value in wide)], strict=True
    ):
        torch.testing.assert_close(x, y.to(x.dtype), rtol=1e-4, atol=1e-5)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture(params=["cpu", "gpu"])
def path(request, monkeypatch):
    """Both ways to compute: that of a GPU with its formulas as they stand, since nothing compiles them here."""
    monkeypatch.setattr(kernels, "_on_gpu", lambda _: request.param == "gpu")


def test_rms_norm():
    both_ways(
        lambda x, gain: RMSNormalize.apply(x, gain, 1e-5),
        lambda x, gain: torch.nn.functional.rms_norm(x, (48,), gain, 1e-5),
        torch.randn(7, 3, 48),
        torch.randn(48),
    )


def test_rms_norm_in_bf16_rounds_once():
    x, gain = torch.randn(5, 2, 48).bfloat16(), torch.randn(48).bfloat16()
    exact = torch.nn.functional.rms_norm(x.double(), (48,), gain.double(), 1e-5)
    assert torch.equal(RMSNormalize.apply(x, gain, 1e-5), exact.bfloat16())


def test_swiglu(path):
    def reference(both):
        gate, up = both.chunk(2, dim=-1)
        return torch.nn.functional.silu(gate) * up

    both_ways(SwiGLU.apply, reference, torch.randn(7, 3, 40))


@pytest.mark.parametrize("queries", [1, 3])
def test_rotary_heads(path, queries):
    sequence, batch, groups, size = 9, 2, 2, 8
    angles = torch.rand(sequence, size // 2) * 6

    def reference(mixed):
        heads = mixed.view(sequence, batch, groups, queries + 2, size)
        turn = torch.polar(torch.ones_like(angles), angles)[:, None, None, None].to(torch.complex128)
        pairs = torch.complex(heads[..., : size // 2], heads[..., size // 2 :]) * turn
        turned = torch.cat([pairs.real, pairs.imag], dim=-1)
        query, key, value = turned[..., :queries, :], turned[..., queries, :], heads[..., -1, :]
        return query.flatten(2, 3).permute(1, 2, 0, 3), key.permute(1, 2, 0, 3), value.permute(1, 2, 0, 3)

    mixed = torch.randn(sequence, batch, groups * (queries + 2) * size)
    both_ways(lambda x: RotaryHeads.apply(x, angles.cos(), angles.sin(), groups), reference, mixed)


@pytest.mark.parametrize("rows_at_once", [1, 4, 100])
def test_cross_entropy(path, monkeypatch, rows_at_once):
    monkeypatch.setattr(kernels, "_CROSS_ENTROPY_BYTES", {"cpu": rows_at_once * 4 * 33})
    labels = torch.randint(0, 33, (11,))
    both_ways(
        # A copy, since the backward pass writes over the logits.
        lambda logits: VocabularyCrossEntropy.apply(logits.clone(), labels, OneProcess()),
        lambda logits: torch.nn.functional.cross_entropy(logits, labels, reduction="none"),
        torch.randn(11, 33) * 20,
    )


def test_cross_entropy_holds_no_fp32_copy_of_the_logits():
    rows, columns = 512, 84_000
    logits = torch.zeros(rows, columns, dtype=torch.bfloat16).requires_grad_()
    labels = torch.arange(rows)
    allocated = MostAllocated()
    with allocated:
        losses = VocabularyCrossEntropy.apply(logits, labels, OneProcess())
        (gradient,) = torch.autograd.grad(losses.sum(), logits)
    torch.testing.assert_close(losses, torch.full((rows,), columns, dtype=torch.float32).log())
    assert gradient.data_ptr() == logits.data_ptr()
    # A block at a time of some MiB, in which one FP32 copy of all would take 164.
    assert allocated.largest < 8 * 2**20 < rows * columns * 4 / 20


def test_cross_entropy_of_bf16_logits_is_worked_out_in_fp32():
    logits, labels = (torch.randn(6, 65) * 5).bfloat16(), torch.randint(0, 65, (6,))
    ours, wide = logits.clone().requires_grad_(), logits.float().requires_grad_()
    losses = VocabularyCrossEntropy.apply(ours.clone(), labels, OneProcess())
    expected = torch.nn.functional.cross_entropy(wide, labels, reduction="none")
    torch.testing.assert_close(losses, expected)
    losses.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(ours.grad, wide.grad.bfloat16(), rtol=2**-7, atol=1e-6)


@pytest.mark.parametrize("has_avx512", [True, False])
@pytest.mark.parametrize(("rows", "inputs", "outputs"), [(65, 32, 96), (64, 80, 16), (1, 8, 8)])
def test_products(rows, inputs, outputs, has_avx512, monkeypatch):
    monkeypatch.setattr(kernels, "_ONEDNN", has_avx512)
    x, weight, gradient = torch.randn(rows, inputs), torch.randn(outputs, inputs), torch.randn(rows, outputs)
    torch.testing.assert_close(kernels.product(x, weight.t()), x @ weight.t(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(kernels.product(gradient, weight), gradient @ weight, rtol=1e-4, atol=1e-4)
    buffer = torch.randn(outputs, inputs)
    expected = buffer + gradient.t() @ x
    kernels.add_weight_gradient_(buffer, gradient, x)
    torch.testing.assert_close(buffer, expected, rtol=1e-4, atol=1e-4)
    kernels.add_weight_gradient_(buffer, gradient.bfloat16(), x.bfloat16())
    torch.testing.assert_close(buffer, expected + gradient.t() @ x, rtol=2**-6, atol=2**-6 * rows)


def test_formulas_are_the_same_when_compiled():
    # One compilation of all: the compiler's start and the C++ compiler take most of the time.
    heads, cosine, sine = torch.randn(2, 2, 3, 9, 8), torch.randn(9, 4), torch.randn(9, 4)
    both, gradient = torch.randn(7, 40), torch.randn(7, 20)
    logits, log_sum, factor = torch.randn(6, 65) * 5, torch.randn(6, 1), torch.randn(6, 1)

    def formulas(heads, both, logits):
        return (
            kernels.rotated(heads, cosine, sine),
            kernels.gated(both),
            kernels.gated_gradient(both, gradient),
            kernels.log_sum_exp(logits),
            kernels.scaled_probabilities_(logits, log_sum, factor),
        )

    inputs = heads.bfloat16(), both.bfloat16(), logits.bfloat16()
    expected = formulas(*(value.clone() for value in inputs))
    for ours, theirs in zip(torch.compile(formulas)(*inputs), expected, strict=True):
        # Compiled, BF16 is computed in FP32 and rounded once at the end.
        torch.testing.assert_close(ours, theirs, rtol=2**-7, atol=2**-7)
    assert torch.equal(inputs[2], expected[4])


@pytest.mark.parametrize("multiplies_bf16", [True, False])
def test_products_of_bf16_are_rounded_once(monkeypatch, multiplies_bf16):
    monkeypatch.setattr(kernels, "_MULTIPLIES_BF16", multiplies_bf16)
    x, weight = torch.randn(17, 32).bfloat16(), torch.randn(24, 32).bfloat16()
    exact = x.double() @ weight.double().t()
    result = kernels.product(x, weight.t())
    assert result.dtype == torch.bfloat16
    # Half a step of BF16's last bit, and what FP32 sums are off by.
    torch.testing.assert_close(result.double(), exact, rtol=2**-8 * 1.01, atol=1e-4)

"""Calls of other packages' kernels, against stand-ins that implement their documented signatures in plain PyTorch.

The kernels themselves need a GPU: tests/test_gpu_kernels.py.
"""

import copy

import pytest
import torch
from tests.mixers.oracles import Calls, layouts, relative_error, run
from tests.stand_ins.kernel_packages import hide_packages, use_stand_ins

from retlab.benchmark.peers import FlashLinearAttention
from retlab.mixers import Attention, Mixer, Retention, kernels
from retlab.mixers.kernels import KERNELS, package_obstacle, use_kernel

WIDTH, HEADS = 24, 2
LENGTHS = [1, 2, 7, 33, 64, 65]


@pytest.fixture
def _stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    use_stand_ins(monkeypatch)


def pair(name: str, **settings) -> tuple[Mixer, Mixer, Calls]:
    """A mixer in its plain form, its copy on the stand-in, and the count of the stand-in's calls."""
    torch.manual_seed(0)
    plain = {"attention": Attention, "retention": Retention}[name](WIDTH, num_heads=HEADS, **settings)
    fast = copy.deepcopy(plain)
    assert use_kernel(fast, KERNELS[name]) is None
    fast.kernel = calls = Calls(fast.kernel)
    return plain, fast, calls


def results(mixer: Mixer, tokens: int, segment_ids=None, state=None) -> dict[str, torch.Tensor]:
    """Outputs, the state's tensors, and the gradients of a fixed weighting of both."""
    generator = torch.Generator().manual_seed(tokens)
    hidden = torch.randn(2, tokens, WIDTH, generator=generator).requires_grad_()
    out, state = run(mixer, hidden, torch.arange(tokens)[None], segment_ids, state)
    floats = [tensor for tensor in (out, *state) if tensor.is_floating_point()]
    mixer.zero_grad()
    sum((x * torch.randn(x.shape, generator=generator)).sum() for x in floats).backward()
    gradients = {name: parameter.grad.clone() for name, parameter in mixer.named_parameters()}
    return {f"{i}": x for i, x in enumerate(floats)} | {"hidden": hidden.grad} | gradients


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for key, tensor in one.items():
        # Of a softmax over one key, the gradient is nothing but rounding.
        assert float((other[key] - tensor).abs().max().detach()) < 1e-5 * max(
            1.0, float(tensor.abs().max().detach())
        ), key


@pytest.mark.usefixtures("_stand_ins")
@pytest.mark.parametrize("tokens", LENGTHS)
@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_gives_the_plain_forms_outputs_state_and_gradients(name, tokens):
    plain, fast, calls = pair(name)
    assert_equal(results(plain, tokens), results(fast, tokens))
    # Retention of one token is the recurrence itself.
    assert calls.count == (0 if name == "retention" and tokens == 1 else 1)


@pytest.mark.usefixtures("_stand_ins")
@pytest.mark.parametrize("name", KERNELS)
def test_pieces_with_a_state_on_a_kernel_equal_one_call_in_the_plain_form(name):
    plain, fast, calls = pair(name)
    hidden, positions = torch.randn(2, 70, WIDTH), torch.arange(70)[None]
    with torch.no_grad():
        whole, last = run(plain, hidden, positions)
        state, outs = None, []
        for start, end in ((0, 33), (33, 34), (34, 70)):
            out, state = run(fast, hidden[:, start:end], positions[:, start:end], None, state)
            outs.append(out)
    assert relative_error(torch.cat(outs, dim=1), whole) < 1e-5
    assert relative_error(state[0], last[0]) < 1e-5
    # Attention's state may hide keys, and only the plain form looks.
    assert calls.count == (2 if name == "retention" else 1)


@pytest.mark.usefixtures("_stand_ins")
@pytest.mark.parametrize("layout", [name for name, ids in layouts(8).items() if ids is not None])
@pytest.mark.parametrize("name", KERNELS)
def test_padding_and_documents_take_the_plain_form(name, layout):
    plain, fast, calls = pair(name)
    segment_ids = layouts(40)[layout]
    assert_equal(results(plain, 40, segment_ids), results(fast, 40, segment_ids))
    assert calls.count == 0


@pytest.mark.usefixtures("_stand_ins")
@pytest.mark.parametrize(("form", "count"), [("parallel", 0), ("recurrent", 0), ("chunkwise", 1), (None, 1)])
def test_a_form_that_is_asked_for_is_the_one_that_is_computed(form, count):
    plain, fast, calls = pair("retention", chunk_size=16)
    fast.set_form(form)
    assert_equal(results(plain, 40), results(fast, 40))
    assert calls.count == count


@pytest.mark.usefixtures("_stand_ins")
def test_dropout_reaches_flash_attn_in_training_alone():
    _, fast, calls = pair("attention", dropout=0.5)
    seen = []
    calls.function = lambda *args, **kwargs: seen.append(kwargs["dropout_p"]) or args[0]
    for training in (True, False):
        run(fast.train(training), torch.randn(1, 5, WIDTH), torch.arange(5)[None])
    assert seen == [0.5, 0.0]


@pytest.mark.parametrize("name", KERNELS)
def test_what_a_kernel_does_not_compute_on_takes_the_plain_form(monkeypatch, name):
    use_stand_ins(monkeypatch)
    plain, fast, calls = pair(name)
    for constant, value in (("KERNEL_DEVICES", ("cuda",)), ("KERNEL_DTYPES", (torch.bfloat16,))):
        with monkeypatch.context() as inner:
            inner.setattr(kernels, constant, value)
            assert_equal(results(plain, 20), results(fast, 20))
    assert calls.count == 0


@pytest.mark.parametrize("name", KERNELS)
def test_packages_that_are_missing_say_how_to_install_them(monkeypatch, name):
    kernel = KERNELS[name]
    hide_packages(monkeypatch)
    mixer = {"attention": Attention, "retention": Retention}[name](WIDTH, num_heads=HEADS)
    obstacle = use_kernel(mixer, kernel)
    assert obstacle is not None
    assert obstacle.reason == f"{kernel.title} is not installed"
    assert obstacle.remedy == f"install it with pip install {kernel.package}"
    if name == "retention":
        # The version that the benchmark's peers name too.
        assert (
            FlashLinearAttention.install
            == f"pip install {kernel.package}"
            == "pip install flash-linear-attention==0.6.0"
        )
    assert mixer.kernel is None


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("__version__ = '0.5.9'", "0.5.9 is older than"),
        ("raise ImportError('undefined symbol: _ZN3c10')", "is installed but cannot be imported (undefined symbol"),
        ("raise OSError()", "is installed but cannot be imported (OSError)"),
        ("import triton_of_another_name", "needs triton_of_another_name, which is not installed"),
    ],
)
@pytest.mark.parametrize("name", KERNELS)
def test_packages_that_are_old_or_broken_say_so(monkeypatch, tmp_path, name, source, reason):
    use_stand_ins(monkeypatch)
    folder = tmp_path / KERNELS[name].module.split(".")[0]
    folder.mkdir()
    (folder / "__init__.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    obstacle = package_obstacle(KERNELS[name])
    assert obstacle is not None
    assert reason in obstacle.reason
    assert "pip install" in obstacle.remedy

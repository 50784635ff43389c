"""The GPU half of attention_peers.py: onepass beside PyTorch's attention and FlashAttention-3 (where it is installed) on the shapes of
onepass bench attention --device cuda, in one process, timed as that program times: CUDA graphs, inputs that the L2 cache does not hold,
medians. The sides of a shape take turns, each after as long a warm-up of its own; every result is compared with onepass's.
"""

import functools
import json
import pathlib
import random
import sys
import warnings
from typing import NoReturn

import attention_anchors
import attention_fa3
import attention_onepass
import attention_program
import torch
from attention_timing import Gauge, Side, figures
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention

ALLOWED_DIFFERENCE = 1 / 32  # from onepass's result, relative to its largest element
OWN = ("onepass", "contiguous")  # sides that are no peers


def shapes_of(args) -> dict:
    """The program's shapes, how many copies of the inputs each needs, and the bandwidth of a copy; its times are too short to count."""
    options = ["--device", "cuda", "--dtype", args.dtype, "--workload", args.workload, "--kernel", args.kernel]
    return attention_program.report(args.onepass, *options, "--seconds", 0.01)


class Inputs:
    """As many copies of q, k and v as the program makes, [batch, length, heads, head_dim], and what says how long they are.
    K and V in pages are the same memory, in the order of page_table."""

    def __init__(self, shape: dict, dtype: torch.dtype):
        self.dtype, self._page_size = dtype, shape["page_size"]
        batch, seqlen_q, seqlen_k = shape["batch"], shape["seqlen_q"], shape["seqlen_k"]

        def integers(values) -> torch.Tensor:
            return torch.as_tensor(values, dtype=torch.int32).cuda()

        self.lengths = integers([seqlen_k] * batch)
        self.cu_seqlens_q = integers([seqlen_q * i for i in range(batch + 1)])
        self.cu_seqlens_k = integers([seqlen_k * i for i in range(batch + 1)])
        rows = seqlen_k
        if self._page_size > 0:
            pages = -(-seqlen_k // self._page_size)
            rows = pages * self._page_size
            self.page_table = integers(torch.randperm(batch * pages).view(batch, pages))

        def normal(length: int, heads: int, dim: int) -> torch.Tensor:
            return torch.randn((batch, length, heads, dim), device="cuda", dtype=dtype)

        self.copies = []
        for _ in range(shape["copies"]):
            q = normal(seqlen_q, shape["num_heads"], shape["head_dim"])
            k = normal(rows, shape["num_heads_kv"], shape["head_dim"])
            v = normal(rows, shape["num_heads_kv"], shape["head_dim_v"])
            self.copies.append((q, k, v))

    def pages(self, t: torch.Tensor) -> torch.Tensor:
        return t.view(-1, self._page_size, *t.shape[2:])

    def in_order(self, t: torch.Tensor) -> torch.Tensor:
        """K or V as the page table puts them, contiguous, for who takes no pages."""
        if self._page_size == 0:
            return t
        batch, pages = self.page_table.shape
        return self.pages(t)[self.page_table.flatten()].view(batch, pages * self._page_size, *t.shape[2:])


def sdpa_calls(backend: SDPBackend, shape: dict, inputs: Inputs) -> list:
    square = shape["seqlen_q"] == shape["seqlen_k"]
    options = {"enable_gqa": shape["num_heads"] != shape["num_heads_kv"]}
    if shape["causal"] and square:
        options["is_causal"] = True
    elif shape["causal"] and shape["seqlen_q"] > 1:
        if backend == SDPBackend.CUDNN_ATTENTION:
            raise ValueError("PyTorch gives cuDNN this mask as numbers in memory")
        options["attn_mask"] = causal_lower_right(shape["seqlen_q"], shape["seqlen_k"])

    def call(q, k, v):
        with sdpa_kernel(backend):
            return scaled_dot_product_attention(q, k, v, **options).transpose(1, 2)

    def arguments(q, k, v):
        k, v = (inputs.in_order(t)[:, : shape["seqlen_k"]] for t in (k, v))
        return [t.transpose(1, 2) for t in (q, k, v)]

    return [functools.partial(call, *arguments(*copy)) for copy in inputs.copies]


def difference(calls: list, expected: torch.Tensor) -> float:
    """Of the first copy's result from `expected`; of a second call, in case the first one used up what it was given."""
    calls[0]()
    found = calls[0]().reshape(expected.shape)
    return ((found - expected).abs().max() / expected.abs().max()).item()


def build_sides(shape: dict, args, modules: dict) -> dict:
    """Name -> Side of onepass and of the peers that take the shape, on inputs of their own. "contiguous": onepass's kernel where K and V
    are not in pages, if that is what it is judged by. Adds to the shape "wrong", if onepass's result is."""
    inputs = Inputs(shape, getattr(torch, args.dtype))
    ours = attention_onepass.Kernel(shape, inputs, shape["kernel"]).calls()
    ours[0]()
    expected = ours[0]().float()
    if not expected.isfinite().all():
        shape["wrong"] = "not finite"
    sides = {"onepass": Side(ours)}
    if has_contiguous_goal(shape):
        flat = shape | {"page_size": 0}
        sides["contiguous"] = Side(attention_onepass.Kernel(flat, Inputs(flat, inputs.dtype), shape["kernel"]).calls())
    builds = {
        f"FA3 {name}": functools.partial(attention_fa3.calls_of, name, module) for name, module in modules.items()
    }
    peers = {
        **builds,
        "cuDNN": functools.partial(sdpa_calls, SDPBackend.CUDNN_ATTENTION),
        "FA2": functools.partial(sdpa_calls, SDPBackend.FLASH_ATTENTION),
    }
    differing, agreeing = [], []
    for name, make in peers.items():
        peer, _, build = name.partition(" ")
        if peer not in args.peers or peer in sides:
            continue
        try:
            calls = make(shape, inputs)
            off = difference(calls, expected)
            if not off <= ALLOWED_DIFFERENCE:
                differing.append(name)
                print(f"{shape['name']}: {name} left out: {off:.1e} from onepass's result", file=sys.stderr)
                continue
            agreeing.append(name)
            sides[peer] = Side(calls)
            if build:
                shape["fa3"] = build
        except (RuntimeError, ValueError, TypeError, AssertionError) as error:
            if "CUDA error" in str(error):
                raise
            torch.cuda.synchronize()
            if args.verbose or isinstance(error, torch.OutOfMemoryError):
                print(
                    f"{shape['name']}: {name} left out: {(str(error).strip() or repr(error)).splitlines()[0]}",
                    file=sys.stderr,
                )
    if differing and not agreeing:
        shape["wrong"] = f"unlike {', '.join(differing)}"
    return sides


def has_contiguous_goal(shape: dict) -> bool:
    return any("contiguous" in goal.peers for goal in attention_anchors.goals(shape["name"], shape["kernel"]))


def measure(shape: dict, args, modules: dict, gauge: Gauge) -> None:
    """Adds to the shape "sides", name -> figures() of onepass and of the peers, and what follows from them."""
    # A difference of 3% is to be seen where what counts for as much is where the inputs lie.
    count = args.instances * (2 if has_contiguous_goal(shape) else 1)
    instances = [build_sides(shape, args, modules) for _ in range(count)]
    # A GPU at its power limit gives a kernel the clocks that the one before has left: no side always follows the same other.
    turns = [side for sides in instances for side in sides.values()]
    shuffle = random.Random(shape["name"]).shuffle
    for _ in range(args.rounds):
        shuffle(turns)
        for side in turns:
            side.measure(args.seconds, gauge)
    names = [name for name in instances[0] if all(name in sides for sides in instances)]
    shape["sides"] = {name: figures([sides[name] for sides in instances]) for name in names}
    shape["us"] = shape["sides"]["onepass"]["us"]
    shape["peers_us"] = {name: shape["sides"][name]["us"] for name in names if name not in OWN}


def measure_gemm(dtype: torch.dtype, gauge: Gauge) -> float:
    """TFLOP/s of a large product of matrices: the arithmetic that the GPU sustains."""
    n = 8192
    a, b = (torch.randn((n, n), device="cuda", dtype=dtype) for _ in range(2))
    side = Side([lambda: a @ b])
    side.measure(0.2, gauge)
    return 2 * n**3 / figures([side])["us"] * 1e-6


def stop(problem: str) -> NoReturn:
    sys.exit(f"attention_peers.py: {problem}")


def load(library: pathlib.Path) -> None:
    if not library.is_file():
        stop(f"--library: {library}: expected a file, found none")
    try:
        attention_onepass.load(library)
    except (OSError, AttributeError) as error:
        stop(f"--library: {library}: expected libonepass_attention.so: {error}")


def main(args) -> None:
    if not torch.cuda.is_available():
        stop("--device cuda: PyTorch finds no GPU")
    if args.output:  # before anything is measured
        try:
            args.output.open("a").close()
        except OSError as error:
            stop(f"--output: {args.output}: {error.strerror}")
    warnings.filterwarnings("ignore", message=".*", category=UserWarning)  # why a backend does not take a shape
    load(args.shared_object)
    modules = attention_fa3.builds()
    gauge = Gauge()
    report = shapes_of(args)
    shapes = [shape for shape in report["shapes"] if args.shapes.search(shape["name"])]
    if not shapes:
        stop(f"--shapes: {args.shapes.pattern}: expected to find a shape of --workload {args.workload}, found none")
    report |= {"torch": torch.__version__, "cudnn": torch.backends.cudnn.version(), "shapes": []}
    report["fa3"] = attention_fa3.describe(modules)
    report["gemm_tflop_per_s"] = measure_gemm(getattr(torch, args.dtype), gauge)
    print_head(report, args.peers)
    try:
        for shape in shapes:
            try:
                with torch.no_grad():
                    measure(shape, args, modules, gauge)
            except torch.OutOfMemoryError:
                stop(f"{shape['name']}: out of memory: expected fewer --instances, found {args.instances}")
            torch.cuda.empty_cache()
            report["shapes"].append(shape)
            print_row(shape, report, args.peers)
    finally:  # a fault of one kernel, which ends all work on the GPU, leaves what was measured before
        if args.output:
            args.output.write_text(json.dumps(report, indent=1) + "\n")
    verdicts = [reached for shape in shapes for _, reached in attention_anchors.verdicts(shape, report)]
    print(f"targets: {verdicts.count('reached')} reached, {verdicts.count('missed')} missed")
    wrong = [f"{shape['name']} ({shape['kernel']}: {shape['wrong']})" for shape in shapes if "wrong" in shape]
    if wrong:
        stop(f"wrong results of onepass: {', '.join(wrong)}")


def print_head(report: dict, peers: list) -> None:
    print(
        f"{report['device']}, {report['dtype']}, torch {report['torch']}, cuDNN {report['cudnn']}; FA3: {report['fa3']}; a copy reads "
        f"and writes {report['copy_gb_per_s']:.0f} GB/s, a GEMM of 8192 makes {report['gemm_tflop_per_s']:.0f} TFLOP/s.\n"
        "TFLOP/s, decode: GB/s of K and V; MHz and watts under way: onepass / best peer; *: as measured earlier on an H100"
    )
    print(f"{'':36} {'kernel':16} {'onepass':>8}" + "".join(f" {p:>8} {'ratio':>6}" for p in peers), end="")
    print(f" {'MHz':>11} {'W':>9}  target")


def print_row(shape: dict, report: dict, peers: list) -> None:
    us, sides = shape["us"], shape["sides"]
    line = f"{shape['name']:36} {shape['kernel']:16} {attention_anchors.rate(shape, us):8.0f}"
    for peer in peers:
        theirs = shape["peers_us"].get(peer)
        line += f" {attention_anchors.rate(shape, theirs):8.0f} {theirs / us:5.2f}x" if theirs else " " * 16
    best = min((s for name, s in sides.items() if name not in OWN), key=lambda s: s["us"], default=None)
    for key, width in (("mhz", 11), ("watts", 9)):
        both = [s[key] for s in (sides["onepass"], best) if s is not None and s[key] is not None]
        line += f" {'/'.join(f'{value:.0f}' for value in both):>{width}}"
    verdicts = "; ".join(" ".join(verdict) for verdict in attention_anchors.verdicts(shape, report))
    print(f"{line}  {verdicts}".rstrip(), flush=True)

"""CUDA C++ compiled when it is first needed, by the NVRTC that PyTorch brings, and launched by the driver.

Nothing but PyTorch is needed: no compiler on the host, no headers. Hopper's own instructions (tensor copies into shared
memory, products of warpgroups) are out of Triton's reach in the order that the kernels here want them in.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import torch
from torch import Tensor

from model.errors import ModelError

CAPABILITY = (9, 0)
"""The only compute capability that these kernels run on."""

_ARCHITECTURE = "sm_90a"
_MOST_SHARED_BYTES = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
_OVERLAPPED = 6  # CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
_BOX_BYTES = 128  # of a row of a box: what one swizzle covers


class CudaError(ModelError):
    """A call of NVRTC or of the driver failed."""


class TensorMap(ctypes.Structure):
    """The driver's description of a matrix, passed to kernels by value."""

    _fields_ = (("opaque", ctypes.c_uint64 * 16),)


class _Attribute(ctypes.Structure):
    """CUlaunchAttribute with a value that is an int."""

    _fields_ = (("id", ctypes.c_int), ("pad", ctypes.c_char * 4), ("value", ctypes.c_int), ("rest", ctypes.c_char * 60))


class _Launch(ctypes.Structure):
    """CUlaunchConfig."""

    _fields_ = (
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared_bytes", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.POINTER(_Attribute)),
        ("attribute_count", ctypes.c_uint),
    )


Argument = ctypes.c_void_p | ctypes.c_int | ctypes.c_float | TensorMap
"""What a kernel takes."""


def is_hopper(device: torch.device) -> bool:
    """Whether the device runs these kernels."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) == CAPABILITY


def hopper_source() -> str:
    """One line of C++ for each instruction that Hopper's kernels are made of."""
    return files("model.engine").joinpath("hopper.cuh").read_text(encoding="utf-8")


def product_source(name: str, columns: int, *, a_in_registers: bool = False, halves: bool = False) -> str:
    """A C++ function for one warpgroup's product of E4M3 tiles, 64 rows by `columns` by 32 deep, added up in float32.

    name(d, a, b, add): d [columns / 2] floats of a thread, or where `halves` as many in 16 bit, two to a word; a and b
    matrix descriptors, or a0 to a3 the thread's own part of the rows where `a_in_registers`; add 0 overwrites d.
    """
    count = columns // 4 if halves else columns // 2
    c_type, constraint, summed = ("u32", "+r", "f16") if halves else ("float", "+f", "f32")
    outs, index = ", ".join(f"%{i}" for i in range(count)), count
    a = "{" + ", ".join(f"%{index + i}" for i in range(4)) + "}" if a_in_registers else f"%{index}"
    index += 4 if a_in_registers else 1
    parameters, inputs = "u64 a", '"l"(a)'
    if a_in_registers:
        parameters, inputs = "u32 a0, u32 a1, u32 a2, u32 a3", '"r"(a0), "r"(a1), "r"(a2), "r"(a3)'
    held = ", ".join(f'"{constraint}"(d[{i}])' for i in range(count))
    instruction = f"wgmma.mma_async.sync.aligned.m64n{columns}k32.{summed}.e4m3.e4m3"
    return (
        f"__device__ __forceinline__ void {name}({c_type} (&d)[{count}], {parameters}, u64 b, int add) {{\n"
        f'  asm volatile("{{\\n.reg .pred p;\\nsetp.ne.b32 p, %{index + 1}, 0;\\n"\n'
        f'      "{instruction} {{{outs}}}, {a}, %{index}, p, 1, 1;\\n}}"\n'
        f'      : {held} : {inputs}, "l"(b), "r"(add));\n}}\n'
    )


@dataclass(frozen=True, slots=True, eq=False)
class Kernel:
    """A loaded kernel that takes `shared_bytes` of dynamic shared memory."""

    handle: ctypes.c_void_p
    shared_bytes: int

    def launch(self, blocks: int, threads: int, arguments: Sequence[Argument]) -> None:
        """Enqueue on PyTorch's current stream, as `overlap` says; `blocks` is a multiple of the kernel's cluster."""
        pointers = (ctypes.c_void_p * len(arguments))(*(ctypes.addressof(argument) for argument in arguments))
        overlapped = _Attribute(id=_OVERLAPPED, value=1)
        launch = _Launch(
            (blocks, 1, 1), (threads, 1, 1), self.shared_bytes,
            torch.cuda.current_stream().cuda_stream, ctypes.pointer(overlapped), 1,
        )  # fmt: skip
        _check("cuLaunchKernelEx", _driver().cuLaunchKernelEx(ctypes.byref(launch), self.handle, pointers, None))


def load_files(
    package: str,
    names: Sequence[str],
    kernel: str,
    macros: Mapping[str, int | str],
    products: Sequence[str],
    shared_bytes: int,
) -> Kernel:
    """`load_kernel` of files that need `hopper_source()`, functions of `product_source`, and `macros`."""
    source = "".join(f"#define {macro} {value}\n" for macro, value in macros.items()) + hopper_source()
    source += "".join(products) + "".join(files(package).joinpath(name).read_text(encoding="utf-8") for name in names)
    return load_kernel(source, kernel, shared_bytes)


def load_kernel(source: str, name: str, shared_bytes: int) -> Kernel:
    """Compile C++ (seconds) and load its kernel `name` into the current context. Raises CudaError with the log."""
    torch.cuda.current_stream()  # makes the context, where there is none yet
    module, function = ctypes.c_void_p(), ctypes.c_void_p()
    driver = _driver()
    _check("cuModuleLoadData", driver.cuModuleLoadData(ctypes.byref(module), _compiled(source)))
    _check("cuModuleGetFunction", driver.cuModuleGetFunction(ctypes.byref(function), module, name.encode()))
    _check("cuFuncSetAttribute", driver.cuFuncSetAttribute(function, _MOST_SHARED_BYTES, shared_bytes))
    return Kernel(function, shared_bytes)


def tensor_map(matrix: Tensor, box_rows: int) -> TensorMap:
    """How to copy boxes of `box_rows` rows by 128 bytes of a contiguous matrix [rows, bytes], one byte an element."""
    rows, width = matrix.shape
    if matrix.element_size() != 1 or not matrix.is_contiguous() or width % 16 or matrix.data_ptr() % 16:
        raise CudaError(f"tensor map: needs contiguous rows of a multiple of 16 bytes, got {tuple(matrix.shape)}")
    described = TensorMap()
    one = (ctypes.c_uint32 * 2)(1, 1)
    _check(
        "cuTensorMapEncodeTiled",
        _driver().cuTensorMapEncodeTiled(
            ctypes.byref(described), 0, 2, ctypes.c_void_p(matrix.data_ptr()), (ctypes.c_uint64 * 2)(width, rows),
            (ctypes.c_uint64 * 1)(width), (ctypes.c_uint32 * 2)(_BOX_BYTES, box_rows), one,
            0, 3, 2, 0,  # no interleave, swizzle of 128 bytes, 128 bytes at a time into the L2 cache, zeros outside
        ),
    )  # fmt: skip
    return described


def address(tensor: Tensor | None) -> ctypes.c_void_p:
    """A kernel's pointer argument."""
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


def number(value: int) -> ctypes.c_int:
    """A kernel's int argument."""
    return ctypes.c_int(value)


def _compiled(source: str) -> bytes:
    nvrtc, program = _nvrtc(), ctypes.c_void_p()
    made = nvrtc.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"kernel.cu", 0, None, None)
    if made:
        raise CudaError(f"nvrtcCreateProgram: error {made}")
    options = (f"--gpu-architecture={_ARCHITECTURE}".encode(), b"--std=c++17")
    failed = nvrtc.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
    size = ctypes.c_size_t()
    if failed:
        nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
        log = ctypes.create_string_buffer(size.value)
        nvrtc.nvrtcGetProgramLog(program, log)
        raise CudaError(f"nvrtcCompileProgram: error {failed}\n{log.value.decode()}")
    nvrtc.nvrtcGetCUBINSize(program, ctypes.byref(size))
    image = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetCUBIN(program, image)
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    return image.raw


@functools.cache
def _driver() -> ctypes.CDLL:
    return ctypes.CDLL("libcuda.so.1")


@functools.cache
def _nvrtc() -> ctypes.CDLL:
    """The library that PyTorch was built with, wherever its wheels or the system put it."""
    major = str(torch.version.cuda).split(".", maxsplit=1)[0]
    name = f"libnvrtc.so.{major}"
    packages = Path(torch.__file__).parent.parent
    places = [name, *map(str, packages.glob(f"nvidia/*/lib/{name}")), f"/usr/local/cuda/lib64/{name}"]
    for place in places:
        try:
            return ctypes.CDLL(place)
        except OSError:
            continue
    raise CudaError(f"{name}: not found in {', '.join(places)}")


def _check(call: str, status: int) -> None:
    if status:
        text = ctypes.c_char_p()
        _driver().cuGetErrorString(status, ctypes.byref(text))
        raise CudaError(f"{call}: {(text.value or b'unknown').decode()} ({status})")

# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Reading pickles of plain dicts by interpreting their opcodes: nothing in them is run."""

import pickletools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np


class UnsafePickle(Exception):
    """A pickle holds something other than plain values; the message names it."""


@dataclass
class _Dtype:
    """Placeholder for a numpy dtype of one number while a pickle is read."""

    code: str
    byte_order: str = "="


@dataclass(frozen=True)
class _AllowedGlobal:
    """Placeholder for an allowed global: the kind of value to build from its arguments, not something to call."""

    kind: str


#: Most opcodes of a pickle; one of 100,000 genes has 600,000.
_MAX_OPCODES = 2_000_000
_ALLOWED = {
    ("numpy.core.multiarray", "scalar"): _AllowedGlobal("scalar"),
    ("numpy._core.multiarray", "scalar"): _AllowedGlobal("scalar"),
    ("numpy", "dtype"): _AllowedGlobal("dtype"),
    ("_codecs", "encode"): _AllowedGlobal("encode"),  # Encodes bytes up to protocol 2.
}
_DTYPES = {"b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"}
_NUMBERS = {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"}
_STRINGS = {"UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"}
_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}


class Extension(Protocol):
    """Values that a pickle may hold besides plain ones."""

    def is_allowed(self, module: str, name: str) -> bool:
        """Returns true for a global that `build` knows."""

    def build(self, module: str, name: str, arguments: Any) -> Any:
        """Returns the value that a global stands for with these arguments, or raises `UnsafePickle`."""

    def load(self, reference: Any) -> Any:
        """Returns the value outside the pickle that a reference stands for, or raises `UnsafePickle`."""


@dataclass(frozen=True)
class _OtherGlobal:
    """Placeholder for a global that an extension knows."""

    module: str
    name: str


def read_plain_pickle(data: bytes, extension: Extension | None = None) -> Any:
    """
    Reads a pickle of dicts, tuples, strings and numbers; numpy's numbers become Python's.

    Only the few opcodes that such a pickle consists of are interpreted, and all others are refused. No opcode calls,
    imports or looks up anything, so a hostile file has nothing to exploit.

    Args:
        data: The pickle.
        extension: Further values that it may hold.

    Raises:
        UnsafePickle: The pickle holds anything else, or more than two million opcodes.
        Exception: The bytes are damaged; the type depends on the damage.
    """
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}
    argument: Any

    def pop_to_mark() -> list[Any]:
        start = marks.pop()
        items = stack[start:]
        del stack[start:]
        return items

    def look_up(module: Any, name: Any) -> Any:
        if extension and isinstance(module, str) and isinstance(name, str) and extension.is_allowed(module, name):
            return _OtherGlobal(module, name)
        return _look_up_global(module, name)

    for number, (opcode, argument, _) in enumerate(pickletools.genops(data)):
        if number > _MAX_OPCODES:
            raise UnsafePickle("too many values")
        match opcode.name:
            case "PROTO" | "FRAME" | "STOP":
                pass
            case name if name in _NUMBERS or name in _STRINGS:
                stack.append(argument)
            case name if name in _CONSTANTS:
                stack.append(_CONSTANTS[name])
            case "MARK":
                marks.append(len(stack))
            case "TUPLE":
                stack.append(tuple(pop_to_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3" as name:
                size = int(name[-1])
                stack[-size:] = [tuple(stack[-size:])]
            case "EMPTY_DICT":
                stack.append({})
            case "DICT":
                items = pop_to_mark()
                stack.append({})
                _update_dict(stack[-1], items)
            case "SETITEM":
                items = [stack.pop(), stack.pop()][::-1]
                _update_dict(stack[-1], items)
            case "SETITEMS":
                items = pop_to_mark()
                _update_dict(stack[-1], items)
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "GLOBAL":
                stack.append(look_up(*argument.split(" ", 1)))
            case "STACK_GLOBAL":
                name, module = stack.pop(), stack.pop()
                stack.append(look_up(module, name))
            case "REDUCE":
                arguments, constructor = stack.pop(), stack.pop()
                if extension and isinstance(constructor, _OtherGlobal):
                    stack.append(extension.build(constructor.module, constructor.name, arguments))
                else:
                    stack.append(_build_value(constructor, arguments))
            case "BINPERSID" if extension:
                stack.append(extension.load(stack.pop()))
            case "BUILD" if extension and isinstance(stack[-2], dict):
                stack.pop()  # Attributes of the dict, which mean nothing here.
            case "BUILD":
                state = stack.pop()
                _set_byte_order(stack[-1], state)
            case name:
                raise UnsafePickle(f"the opcode {name}")
    (value,) = stack
    return value


def _update_dict(dictionary: Any, items: Sequence[Any]) -> None:
    if not isinstance(dictionary, dict) or not all(isinstance(key, str) for key in items[::2]):
        raise UnsafePickle("a container other than a dict with strings for keys")
    dictionary.update(zip(items[::2], items[1::2], strict=True))


def _look_up_global(module: Any, name: Any) -> _AllowedGlobal:
    if not (isinstance(module, str) and isinstance(name, str)):
        raise UnsafePickle("a global without a name")
    if (module, name) not in _ALLOWED:
        raise UnsafePickle(f"the global {f'{module}.{name}'!r}")
    return _ALLOWED[module, name]


def _build_value(constructor: Any, arguments: Any) -> Any:
    """Builds a dtype, a number or bytes, the values that the allowed globals stand for."""
    match constructor, arguments:
        case _AllowedGlobal(kind="dtype"), (str(code), *_) if code in _DTYPES:
            return _Dtype(code)
        case _AllowedGlobal(kind="scalar"), (_Dtype() as dtype, bytes(payload)):
            (number,) = np.frombuffer(payload, dtype.byte_order + dtype.code)
            return number.item()
        case _AllowedGlobal(kind="encode"), (str(text), "latin1"):
            return text.encode("latin-1")
    raise UnsafePickle(
        f"a numpy {constructor.kind} that is not a plain number"
        if isinstance(constructor, _AllowedGlobal)
        else "an object to be built"
    )


def _set_byte_order(dtype: Any, state: Any) -> None:
    match state:
        case (3, "<" | ">" | "=" | "|" as byte_order, None, None, None, -1, -1, 0) if isinstance(dtype, _Dtype):
            dtype.byte_order = byte_order
        case _:
            raise UnsafePickle("the state of an object")


__all__ = ["Extension", "UnsafePickle", "read_plain_pickle"]

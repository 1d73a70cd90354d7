# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Pickles of plain dicts, read by interpreting their opcodes: nothing in them is run."""

import pickletools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


class UnsafePickle(Exception):
    """A pickle holds more than plain values; the message says what."""


@dataclass
class _Dtype:
    """Stands for a numpy dtype of one number while a pickle is read."""

    code: str
    byte_order: str = "="


@dataclass(frozen=True)
class _Maker:
    """Stands for an admitted global: a word about what to make of its arguments, not something to call."""

    makes: str


_ADMITTED = {
    ("numpy.core.multiarray", "scalar"): _Maker("scalar"),
    ("numpy._core.multiarray", "scalar"): _Maker("scalar"),
    ("numpy", "dtype"): _Maker("dtype"),
    ("_codecs", "encode"): _Maker("encode"),  # How bytes are written up to protocol 2.
}
_DTYPES = {"b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"}
_NUMBERS = {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"}
_STRINGS = {"UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"}
_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}


def read_plain_pickle(data: bytes) -> Any:
    """
    A pickle of dicts, tuples, strings and numbers; numpy's numbers become Python's.

    It interprets the few opcodes that such a pickle is made of, and refuses all others. No opcode calls, imports or
    looks up anything here, so there is nothing that a hostile file could bend to its ends.

    Raises:
        UnsafePickle: Anything else is in it. Damaged bytes raise whatever they make the reading stumble over.
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

    for opcode, argument, _ in pickletools.genops(data):
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
                _fill(stack[-1], items)
            case "SETITEM":
                items = [stack.pop(), stack.pop()][::-1]
                _fill(stack[-1], items)
            case "SETITEMS":
                items = pop_to_mark()
                _fill(stack[-1], items)
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "GLOBAL":
                stack.append(_admit(*argument.split(" ", 1)))
            case "STACK_GLOBAL":
                name, module = stack.pop(), stack.pop()
                stack.append(_admit(module, name))
            case "REDUCE":
                arguments, maker = stack.pop(), stack.pop()
                stack.append(_make(maker, arguments))
            case "BUILD":
                state = stack.pop()
                _set_byte_order(stack[-1], state)
            case name:
                raise UnsafePickle(f"the opcode {name}")
    (value,) = stack
    return value


def _fill(dictionary: Any, items: Sequence[Any]) -> None:
    if not isinstance(dictionary, dict) or not all(isinstance(key, str) for key in items[::2]):
        raise UnsafePickle("a container other than a dict with strings for keys")
    dictionary.update(zip(items[::2], items[1::2], strict=True))


def _admit(module: Any, name: Any) -> _Maker:
    if not (isinstance(module, str) and isinstance(name, str)):
        raise UnsafePickle("a global without a name")
    if (module, name) not in _ADMITTED:
        raise UnsafePickle(f"the global {f'{module}.{name}'!r}")
    return _ADMITTED[module, name]


def _make(maker: Any, arguments: Any) -> Any:
    """A dtype, a number, or bytes: what the admitted globals are used for."""
    match maker, arguments:
        case _Maker(makes="dtype"), (str(code), *_) if code in _DTYPES:
            return _Dtype(code)
        case _Maker(makes="scalar"), (_Dtype() as dtype, bytes(payload)):
            (number,) = np.frombuffer(payload, dtype.byte_order + dtype.code)
            return number.item()
        case _Maker(makes="encode"), (str(text), "latin1"):
            return text.encode("latin-1")
    raise UnsafePickle(
        f"a numpy {maker.makes} that is not a plain number" if isinstance(maker, _Maker) else "an object to be made"
    )


def _set_byte_order(dtype: Any, state: Any) -> None:
    match state:
        case (3, "<" | ">" | "=" | "|" as byte_order, None, None, None, -1, -1, 0) if isinstance(dtype, _Dtype):
            dtype.byte_order = byte_order
        case _:
            raise UnsafePickle("the state of an object")


__all__ = ["UnsafePickle", "read_plain_pickle"]

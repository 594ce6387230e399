"""Compressed pixels that would inflate past what their file declares: refused before they do.

A few kilobytes can hold gigabytes of zeros. The size of the whole picture is checked when a file is
opened; this looks at each part of it, a TIFF's tile or strip and a Zarr chunk, when it is decoded.
Deflate, bzip2 and LZMA streams say nowhere how long they are, and are decoded up to a limit. The
others have it in their first bytes.
"""

from __future__ import annotations

import asyncio
import bz2
import lzma
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from zarr.codecs._v2 import V2Codec
from zarr.core.codec_pipeline import BatchedCodecPipeline
from zarr.registry import register_pipeline

from numbasep.cli.images import Refused

Data = bytes | memoryview

# What compression may add to bytes that it cannot make fewer, checksums included.
SLACK = 1 << 16


def _gzip(data: Data, limit: int) -> bytes:
    """Decode gzip or zlib data, of one member or several."""
    made = bytearray()
    while data:
        stream = zlib.decompressobj(47)
        made += stream.decompress(data, limit + 1 - len(made))
        if len(made) > limit:
            break
        if not stream.eof:
            raise EOFError("a compressed chunk ends too early")
        data = stream.unused_data.lstrip(b"\0")
    return bytes(made)


def _streamed(start: Callable[[], Any]) -> Callable[[Data, int], bytes]:
    def decode(data: Data, limit: int) -> bytes:
        stream = start()
        made: bytes = stream.decompress(data, limit + 1)
        if len(made) <= limit and not stream.eof:
            raise EOFError("a compressed chunk ends too early")
        return made

    return decode


def _zstd(data: Data, limit: int) -> int | bytes:
    """Return the size that a frame declares (RFC 8878, 3.1.1.1), or its content."""
    if len(data) < 6 or data[:4] != b"\x28\xb5\x2f\xfd":
        return 0  # for the decoder to say
    described = data[4]
    single, code = described >> 5 & 1, described >> 6
    width = (single, 2, 4, 8)[code]
    if width == 0:
        import imagecodecs

        # Its error says that this is too little.
        return bytes(imagecodecs.zstd_decode(bytes(data), out=limit))
    start = 5 + (1 - single) + (0, 1, 2, 4)[described & 3]
    return int.from_bytes(data[start : start + width], "little") + (256 if code == 1 else 0)


def _lz4(data: Data, limit: int) -> int:
    return int.from_bytes(data[:4], "little")


def _blosc(data: Data, limit: int) -> int:
    """Return the size in a Blosc header, whose own length its decoder believes without a look."""
    if int.from_bytes(data[12:16], "little") > len(data):
        raise EOFError("a compressed chunk ends too early")
    return int.from_bytes(data[4:8], "little")


# By a codec's name, what returns the size of what it would decode, or what it has decoded, which is
# one byte longer than the limit where there was more.
SIZES: dict[str, Callable[[Data, int], int | bytes]] = {
    "zstd": _zstd,
    "blosc": _blosc,
    "lz4": _lz4,
    "gzip": _gzip,
    "zlib": _gzip,
    "bz2": _streamed(bz2.BZ2Decompressor),
    "lzma": _streamed(lzma.LZMADecompressor),
}


def bounded(name: str, data: Data, limit: int) -> bytes | None:
    """Return what a chunk holds, None where its codec may decode it.

    Raises:
        Refused: it holds more than ``limit`` bytes.
    """
    of = SIZES.get(name)
    found = 0 if of is None else of(data, limit)
    size = found if isinstance(found, int) else len(found)
    if size > limit:
        least = "" if isinstance(found, int) else "at least "
        raise Refused(
            f"a chunk of {len(data):,} bytes holds {least}{size:,}, and its shape takes fewer than "
            f"{limit:,}: it is damaged, or meant to fill the memory"
        )
    return None if isinstance(found, int) else found


class Guarded(BatchedCodecPipeline):  # type: ignore[misc]  # Zarr's types are not looked at
    """Zarr's pipeline of codecs, in which no chunk inflates past its declared shape."""

    async def decode_batch(self, chunk_bytes_and_specs: Iterable[tuple[Any, Any]]) -> Iterable[Any]:
        """Decode chunks as the pipeline does, each step checked first."""
        chunks = list(chunk_bytes_and_specs)
        data, specs = [one for one, _ in chunks], [spec for _, spec in chunks]
        steps: list[tuple[Any, list[Any]]] = []
        for codec in self:
            steps.append((codec, specs))
            specs = [codec.resolve_metadata(spec) for spec in specs]
        packed = len(self.bytes_bytes_codecs)
        flat = steps[len(steps) - 1 - packed][1]
        for number, (codec, before) in enumerate(reversed(steps)):
            if number < packed:
                name = str(codec.to_dict()["name"]).removeprefix("numcodecs.")
                unpack = _Step(name, codec, None)
            elif isinstance(codec, V2Codec) and codec.compressor is not None:
                # Of the second version a codec of its own, with the compressor in it.
                unpack = _Step(codec.compressor.codec_id, codec, replace(codec, compressor=None))
            else:
                data = list(await codec.decode(zip(data, before, strict=True)))
                continue
            data = [
                await unpack(one, spec, _limit(declared))
                for one, spec, declared in zip(data, before, flat, strict=True)
            ]
        return data


def _limit(spec: Any) -> int:
    """Return the most bytes that a chunk of a shape and dtype takes, compressed or not."""
    size = int(np.prod(spec.shape, dtype=object)) * spec.dtype.to_native_dtype().itemsize
    return int(size + size // 8 + SLACK)


@dataclass(frozen=True)
class _Step:
    """A codec that decompresses; rest: what of it is left to do then."""

    name: str
    codec: Any
    rest: Any

    async def __call__(self, chunk: Any, spec: Any, limit: int) -> Any:
        if chunk is None:
            return None
        data = memoryview(chunk.as_numpy_array())
        made = await asyncio.to_thread(bounded, self.name, data, limit)
        if made is None:
            (found,) = await self.codec.decode([(chunk, spec)])
            return found
        plain = spec.prototype.buffer.from_bytes(made)
        if self.rest is None:
            return plain
        (found,) = await self.rest.decode([(plain, spec)])
        return found


register_pipeline(Guarded)

# Zarr's setting that makes it take the pipeline for the arrays that are opened under it.
PIPELINE = {"codec_pipeline.path": f"{Guarded.__module__}.{Guarded.__qualname__}"}

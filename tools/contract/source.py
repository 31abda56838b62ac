"""The contract with its comments and its rules, as proto/ has them."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet

ROOT = Path(__file__).parents[2]
FOLDER = "unmask/v1/"


@dataclass(frozen=True)
class Source:
    """All files of the contract."""

    files: Sequence[FileDescriptorProto]
    """Ours, by name."""
    pool: Any = field(repr=False)
    """With everything that they import."""

    def rules(self, kind: str, options: Any) -> Any:
        """The rules in options; None where there are none.

        Args:
            kind: `message`, `field` or `oneof`.
            options: of a descriptor.

        """
        # The extension is known to this pool only, so options are read again as its messages.
        described = self.pool.FindMessageTypeByName(options.DESCRIPTOR.full_name)
        known = message_factory.GetMessageClass(described).FromString(options.SerializeToString())
        extension = self.pool.FindExtensionByName(f"buf.validate.{kind}")
        return known.Extensions[extension] if known.HasExtension(extension) else None


def read_source() -> Source:
    """Read proto/."""
    protos = sorted((ROOT / "proto" / FOLDER).glob("*.proto"))
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "all.binpb"
        subprocess.run(
            [
                sys.executable, "-m", "grpc_tools.protoc", "-I", ROOT / "proto",
                "--include_imports", "--include_source_info", f"--descriptor_set_out={made}",
                *protos,
            ],
            check=True,
        )  # fmt: skip
        everything = FileDescriptorSet.FromString(made.read_bytes())
    return source_of(everything)


def source_of(everything: FileDescriptorSet) -> Source:
    """The contract in a set of files, which come after what they import."""
    pool = descriptor_pool.DescriptorPool()
    for file in everything.file:
        pool.Add(file)
    ours = [file for file in everything.file if file.name.startswith(FOLDER)]
    return Source(sorted(ours, key=lambda file: file.name), pool)


def comments(file: FileDescriptorProto) -> dict[tuple[int, ...], str]:
    """What stands before each thing of a file, by its path in the descriptor."""
    return {
        tuple(at.path): "\n".join(line.strip() for line in at.leading_comments.strip().split("\n"))
        for at in file.source_code_info.location
        if at.leading_comments
    }


def file_comment(file: FileDescriptorProto) -> str:
    """What stands before its package."""
    return comments(file).get((FileDescriptorProto.PACKAGE_FIELD_NUMBER,), "")


def numbered(things: Sequence[Any], *path: int) -> Iterator[tuple[tuple[int, ...], Any]]:
    """Things of a descriptor with their paths, under the path of the field that holds them."""
    for i, thing in enumerate(things):
        yield (*path, i), thing

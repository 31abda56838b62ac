"""Two descriptor sets of the contract: with its constraints, and without.

    python -m tools.contract.descriptors SET --full FULL --thin THIN

SET is protoc's of everything. FULL is what a server enforces and shows by reflection. THIN has no
option of ours but is the same otherwise: stubs made from it need no `buf.validate`, so that the
Python client needs protobuf only, and shares a process with any other version of it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet
from google.protobuf.message import Message

VALIDATE = "buf/validate/"
_DEPENDENCY = FileDescriptorProto.DEPENDENCY_FIELD_NUMBER


def full(everything: FileDescriptorSet) -> FileDescriptorSet:
    """Without comments."""
    made = FileDescriptorSet()
    made.CopyFrom(everything)
    for file in made.file:
        file.ClearField("source_code_info")
        _drop(file, "json_name", lambda _: True)
    return made


def thin(everything: FileDescriptorSet) -> FileDescriptorSet:
    """Without the options that protobuf does not know itself, and the files that define them."""
    made = FileDescriptorSet()
    made.file.extend(file for file in everything.file if not file.name.startswith(VALIDATE))
    # No extension is known here, so custom options are unknown fields.
    made.DiscardUnknownFields()
    for file in made.file:
        kept = [name for name in file.dependency if not name.startswith(VALIDATE)]
        file.dependency[:] = kept
        _drop(file, "options", lambda options: not options.ByteSize())
        _drop(file, "json_name", lambda _: True)
        if file.HasField("source_code_info"):
            locations = file.source_code_info.location
            kept_locations = [at for at in locations if not _of_what_is_gone(list(at.path))]
            del locations[:]
            locations.extend(kept_locations)
    return made


def _drop(message: Message, name: str, when: Callable[[Any], bool]) -> None:
    """Clear the fields of a name in a message and all that it holds.

    protoc writes every JSON name; those here are the ones that it would choose by itself.
    """
    for field, value in message.ListFields():
        if field.message_type is not None:
            for one in value if field.is_repeated else [value]:
                _drop(one, name, when)
        if field.name == name and when(value):
            message.ClearField(name)


def _of_what_is_gone(path: list[int]) -> bool:
    """Whether a source location is of an import or of an option.

    Along a path, numbers of fields and indexes into them take turns.
    """
    if path[:1] == [_DEPENDENCY]:
        return True
    at = FileDescriptorProto.DESCRIPTOR
    for number in path[::2]:
        field = at.fields_by_number[number]
        if field.name == "options":
            return True
        if field.message_type is None:
            return False
        at = field.message_type
    return False


def main() -> None:
    """Write both."""
    parser = argparse.ArgumentParser()
    parser.add_argument("everything", type=Path)
    parser.add_argument("--full", type=Path, required=True)
    parser.add_argument("--thin", type=Path, required=True)
    args = parser.parse_args()
    everything = FileDescriptorSet.FromString(args.everything.read_bytes())
    for path, made in ((args.full, full(everything)), (args.thin, thin(everything))):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(made.SerializeToString(deterministic=True))


if __name__ == "__main__":
    main()
